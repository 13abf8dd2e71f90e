"""FedoSSL: an experiment with classes without labels."""
