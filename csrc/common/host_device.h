// Marks a function for both devices. Always inlined on the host, so that it takes on the instruction
// set of the loop that calls it (see common/simd.h).
#pragma once

#ifdef __CUDACC__
#define SSD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SSD_HOST_DEVICE inline __attribute__((always_inline))
#endif
