"""CausalMM models for lmms-eval, one a family: `lmms-eval --model causalmm_llava`, and so on.

lmms-eval finds them through the entry point `lmms_eval.models` of this distribution, is needed by
this package alone, and lives in an environment of its own: env/requirements-lmms-eval.txt.
"""
