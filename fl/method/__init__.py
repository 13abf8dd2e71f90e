"""What a federated method is written with: strategies, client algorithms, reductions, optimisers, samplers."""
