"""Federated fine-tuning of causal language models: pretraining, instructions, all LoRA rules on one page."""
