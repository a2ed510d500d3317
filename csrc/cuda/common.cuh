// What the CUDA kernels share: types, 16-byte packs, reductions, and the way from tensors to a launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../tensors.h"

namespace slw {
namespace cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// V elements that one instruction loads or stores.
template <class T, int V> struct alignas(sizeof(T) * V) Pack {
  T v[V];
  __device__ __forceinline__ float operator[](int i) const { return widen(v[i]); }
  __device__ __forceinline__ void set(int i, float x) { v[i] = narrow<T>(x); }
};
template <class T> constexpr int kFull = 16 / static_cast<int>(sizeof(T));

template <int V, class T> __device__ __forceinline__ Pack<T, V> load(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <int V, class T> __device__ __forceinline__ void store(T* p, const Pack<T, V>& pack) {
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}
template <int V, class T> __device__ __forceinline__ Pack<T, V> zero_pack() {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.set(i, 0.0f);
  return pack;
}

struct Sum { __device__ __forceinline__ float operator()(float a, float b) const { return a + b; } };
struct Max { __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); } };

// Over groups of `Threads` neighbouring threads; every thread gets the result. Groups larger than a warp are the whole
// block, and `room` holds 33 floats.
template <int Threads, class Op> __device__ __forceinline__ float reduce(float x, Op op, float* room) {
#pragma unroll
  for (int step = (Threads < 32 ? Threads : 32) / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(~0u, x, step));
  if constexpr (Threads > 32) {
    constexpr int kWarps = Threads / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();  // the room may still be read from the last time
    if (lane == 0) room[warp] = x;
    __syncthreads();
    x = room[lane % kWarps];
#pragma unroll
    for (int step = (kWarps < 32 ? kWarps : 32) / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(~0u, x, step));
  }
  return x;
}

// Whether rows of `columns` elements, `stride` apart, can be read as full packs.
template <class T> bool packs(int64_t columns, int64_t stride, std::initializer_list<const void*> pointers) {
  bool fits = columns % kFull<T> == 0 && stride % kFull<T> == 0;
  for (const void* p : pointers) fits = fits && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return fits;
}

// f(a null pointer to the element type)
template <class F> void with_type(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Half: return f(static_cast<__half*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<__nv_bfloat16*>(nullptr));
    default: STD_TORCH_CHECK(false, "the CUDA kernels take float32, float16 and bfloat16");
  }
}

inline cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
inline int multiprocessors(const Tensor& x) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, x.get_device_index()));
  return count;
}
using Guard = torch::stable::accelerator::DeviceGuard;

template <class T> const T* in(const Tensor& x) { return static_cast<const T*>(x.const_data_ptr()); }
template <class T> T* out(Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); }
template <class T> const T* in(const std::optional<Tensor>& x) {
  return x.has_value() ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}
inline unsigned blocks_for(int64_t work, int64_t per_block) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "a CUDA grid has at most 2^31 - 1 blocks, not ", blocks);
  return static_cast<unsigned>(blocks);
}

// first[j] and, with two sets, second[j] = sum over p of from[p, set, j]: 32 columns and 32 parts of the rows per block,
// a set per blockIdx.y.
template <class T>
__global__ void __launch_bounds__(1024)
    sum_parts(const float* __restrict__ from, int64_t parts, int64_t columns, T* first, T* second) {
  __shared__ float room[32][33];
  const int64_t j = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x, sets = gridDim.y;
  float total = 0;
  if (j < columns) {
#pragma unroll 4
    for (int64_t p = threadIdx.y; p < parts; p += 32) total += from[(p * sets + blockIdx.y) * columns + j];
  }
  room[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  total = room[threadIdx.x][threadIdx.y];  // a warp per column from here on
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.y;
  if (threadIdx.x == 0 && column < columns) (blockIdx.y ? second : first)[column] = narrow<T>(total);
}
// The sums over the parts of partial (parts, sets, columns), one or two sets, each in the type of `like`.
inline std::vector<Tensor> sums_of_parts(const Tensor& partial, const Tensor& like) {
  const int64_t sets = partial.size(1), columns = partial.size(2);
  std::vector<Tensor> results;
  for (int64_t set = 0; set < sets; ++set) results.push_back(empty(partial, {columns}, like.scalar_type()));
  if (!columns) return results;
  with_type(like, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    sum_parts<T><<<dim3(blocks_for(columns, 32), static_cast<unsigned>(sets)), dim3(32, 32), 0, stream_of(partial)>>>(
        in<float>(partial), partial.size(0), columns, out<T>(results.front()), out<T>(results.back()));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return results;
}

}  // namespace cuda
}  // namespace slw
