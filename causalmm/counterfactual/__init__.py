"""The mathematics of counterfactual attention: tensors in, tensors out."""
