"""How vectors are measured and moved: devices, types, kernels, processes."""
