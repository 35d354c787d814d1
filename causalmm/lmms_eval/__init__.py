"""CausalMM models for lmms-eval: `lmms-eval --model causalmm_llava` and `causalmm_qwen2_vl`.

lmms-eval finds them through the entry point `lmms_eval.models` of this distribution, is needed by
this package alone, and lives in an environment of its own: env/requirements-lmms-eval.txt.
"""
