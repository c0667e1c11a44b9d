"""What the process that workers are forked from has ready: imported, so that no worker has to."""

import gc

import hydra.main  # noqa: F401  # a worker imports the program's main module
import torch._dynamo  # noqa: F401  # torch.optim does when it is first used, for more than a second

import src.launching.pool  # noqa: F401

gc.freeze()  # workers share the memory of all this, and nobody looks through it when the process exits
