"""FedSA-LoRA beside its kin, under concept shift."""
