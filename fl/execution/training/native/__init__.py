"""Local training of stacks of linear layers in machine code, compiled by numba for the processor at hand.

    z = h W^T + b,  h = phi(z)                                      g = dL/dz of the mean loss
    W <- W - lr g^T h,  b <- b - lr sum(g),  g <- (g W) * phi'(h)

    clients.py     all steps of a chunk, one client after another; the compiled function
    gradients.py   gradients of a chunk, for own steps that are no programs, or of one client; compiled by itself
    split.py       forward and backward passes apart, for losses of a method's own; compiled by itself
    fits.py        fits before training, of all clients of a chunk; compiled by itself
    squares.py     means of squared gradients of single samples; compiled by itself
    programs.py    steps that a method takes itself, as linear combinations and gradients; compiled by itself
    convolutions.py    runs of convolutions, ReLUs and max-pools, for the loop; compiled by itself
    image_tiles.py     tiles of sums over images
    cache.py       where machine code is kept between processes
    shuffle.py     the order of a client's samples
    memory.py      how one client's layers and batches are stored; sums of updates
    combine.py     linear combinations of a client's vectors, such as its new state
    passes.py      forward and backward pass through the layers
    dropout.py     masks of Dropout: draws, and where they are applied
    steps.py       steps of the optimisers, with penalties
    products.py    forward and backward pass of a layer; the walk over its rows that every step takes
    norms.py       forward and backward pass of FN and LN
    losses.py      softmax cross-entropy and squared error
    vector.py      vectors of eight float32

One client's parameters and batches stay in the processor's nearest caches. BLAS takes twice as long for these small
products, because it spends its time on rearranging the factors.
"""
