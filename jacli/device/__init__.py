"""The only room that names CUDA: whatever depends on the hardware that a run computes on.

Most of it are functions of a `torch.device`: every tensor carries one, and it has no state that an object of
ours could own.  Classes are for what has a lifetime: streams, events, recorded graphs, pinned memory.
"""
