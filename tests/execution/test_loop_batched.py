"""One definition, two engines: training one client at a time and many at once agree, and both agree with plain torch.

The plain training below is nn.Module + torch.optim and shares with the engines only the address of a shuffle.
"""



