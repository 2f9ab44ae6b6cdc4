// Descriptions of matrices that Hopper's copies of tiles want. The driver encodes them; it is asked
// for the function, so that the program links without it.
#include "backend/cuda/kernels.h"

#ifdef CUDA_EMU
bool tile_map_make(struct tile_map *m, const void *data, size_t rows, size_t cols, size_t pitch,
                   unsigned box) {
    if ((uintptr_t)data % 16 || pitch % 16 || !rows || !cols) return false;
    *m = (struct tile_map){{(uintptr_t)data, rows, cols, pitch, box}};
    return true;
}
bool tile_map_stretches(struct tile_map *m, const void *data, size_t n, size_t len, size_t cols,
                        size_t pitch, unsigned box, unsigned width, bool lines) {
    (void)lines;
    if ((uintptr_t)data % 16 || pitch % 16 || !n || !len || !cols) return false;
    *m = (struct tile_map){{(uintptr_t)data, len, cols, pitch, box, n, width}};
    return true;
}
#else
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>

_Static_assert(sizeof(struct tile_map) == sizeof(CUtensorMap), "tile_map holds the driver's");

typedef CUresult encode_function(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_function *find_encode(void) {
    static encode_function *_Atomic found;
    encode_function *f = found;
    if (f) return f;
    void *at = NULL;
    enum cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &at, 12000, cudaEnableDefault,
                                         &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess) {
        cudaGetLastError();
        return NULL;
    }
    memcpy(&f, &at, sizeof f);
    found = f;
    return f;
}

// A map of boxes out of n times len rows of cols numbers, whose rows lie pitch bytes apart. A box's
// rows are as long as the swizzle.
static bool make(struct tile_map *m, const void *data, const cuuint64_t dims[3], size_t pitch,
                 const cuuint32_t box[3], int rank, CUtensorMapSwizzle swizzle,
                 CUtensorMapL2promotion together) {
    encode_function *encode = find_encode();
    CUtensorMap map; // wants 64 bytes of alignment
    if (!encode || (uintptr_t)data % 16 || pitch % 16 || !dims[0] || !dims[1] || !dims[2])
        return false;
    if (encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, (void *)(uintptr_t)data,
               dims, (cuuint64_t[]){pitch, pitch * dims[1]}, box, (cuuint32_t[]){1, 1, 1},
               CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, together,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
        return false;
    memcpy(m, &map, sizeof *m);
    return true;
}

bool tile_map_make(struct tile_map *m, const void *data, size_t rows, size_t cols, size_t pitch,
                   unsigned box) {
    return make(m, data, (cuuint64_t[]){cols, rows, 1}, pitch, (cuuint32_t[]){64, box, 1}, 2,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

bool tile_map_stretches(struct tile_map *m, const void *data, size_t n, size_t len, size_t cols,
                        size_t pitch, unsigned box, unsigned width, bool lines) {
    return make(m, data, (cuuint64_t[]){cols, len, n}, pitch,
                (cuuint32_t[]){width, box, (cuuint32_t)n}, 3,
                width == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_32B,
                lines ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_NONE);
}
#endif
