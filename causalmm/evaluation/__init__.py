"""POPE, MME, VLind-Bench and CHAIR: questions, answers, scores, comparisons."""
