"""LLaVA-1.5 checkpoints in their authors' format, such as liuhaotian/llava-v1.5-7b.

That format is a Llama checkpoint with `mm_` settings in its config.json and two modules more, the
projector and sometimes the CLIP tower; the tower is else the checkpoint that `mm_vision_tower`
names. `config` maps the settings, `weights` the tensors' names; `model` loads, `wrap` takes a
model that their package has built, and `processor` brings their prompt and image padding.

An image token does not exist there: a prompt carries the number -200 where the features go. Here
it is the id after the last word, which the embedding table answers with zeros, to be overwritten by
the features, and the head with a logit that no choice can reach.
Held by tests/families/test_authors_format.py, against the authors' own package.
"""
