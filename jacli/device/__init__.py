"""What depends on the device: memory, allocator, transfers, precision, kernels."""
