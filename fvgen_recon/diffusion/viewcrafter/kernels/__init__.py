"""GPU kernels, in Triton, for what general ones do slowly; inference only, no gradients.

They read and write tensors in a channels-last layout, compute in float32 and compile in seconds,
once for all sizes of clip.
"""
