// Shared by the CUDA kernels: element types, memory layouts, launches on torch's stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace deltaspace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 65536;  // beyond this every thread takes several elements

// Sums and products are made in float, or in double for double.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

// An image batch: n x h x w pixels of c values that lie side by side (`last`), or n x c planes of h x w.
struct Shape {
  int64_t n, c, h, w;
  bool last;
};

inline bool channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t axis : {1, 3, 2, 0}) {
    if (x.size(axis) != 1 && x.stride(axis) != expected) return false;
    expected *= x.size(axis);
  }
  return true;
}

// Gradients may have any strides, also a single one of a batch.
inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() || (x.dim() == 4 && channels_last(x)) ? x : torch::stable::contiguous(x);
}

inline Tensor laid_out_like(const Tensor& x, const Tensor& model) {
  bool same = x.dim() == model.dim();
  for (int64_t axis = 0; same && axis < x.dim(); ++axis) same = x.stride(axis) == model.stride(axis);
  if (same) return x;
  Tensor copy = torch::stable::empty_like(model);
  torch::stable::copy_(copy, x);
  return copy;
}

inline Shape shape_of(const Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && channels_last(x);
  STD_TORCH_CHECK(x.dim() == 4 && (last || x.is_contiguous()), "expected a contiguous or channels_last tensor [B,C,H,W]");
  return {x.size(0), x.size(1), x.size(2), x.size(3), last};
}

// An empty batch of maps of h x w with the type and the layout of x.
inline Tensor resized(const Tensor& x, const Shape& s, int64_t h, int64_t w) {
  if (!s.last) return torch::stable::new_empty(x, {s.n, s.c, h, w});
  Tensor pixels = torch::stable::new_empty(x, {s.n, h, w, s.c});
  return torch::stable::transpose(torch::stable::transpose(pixels, 1, 3), 2, 3);  // torch 2.11 has no permute
}

// Calls body(T{}) with the element type of x.
template <typename F>
void with_type(const Tensor& x, const F& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::BFloat16: return body(BFloat16{});
    case ScalarType::Half: return body(Half{});
    default: STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <typename T>
T* data_out(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline ScalarType wide_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream);
  return static_cast<cudaStream_t>(stream);
}

inline unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, kBlocks));
}

__device__ inline int64_t first_index() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ inline int64_t stride() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

}  // namespace deltaspace
