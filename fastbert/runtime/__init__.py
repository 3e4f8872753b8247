"""What every pass needs around its kernels: the Plan, packed batches, devices, progress."""
