"""Pictures, videos, messages and prompts, from what users write."""
