// What the CPU kernels share: element types, memory layouts, a parallel loop.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace deltaspace {

using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For inner loops: as functions of their own, with pointers that do not overlap, gcc makes vectors of them.
#define ALONE [[gnu::noinline]] static

// The bits of a bfloat16: loops over them become vectors, those over torch's type do not.
using BFloat16 = uint16_t;

// Sums and products are made in float, or in double for double.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

inline double widen(double value) { return value; }
inline float widen(float value) { return value; }
inline float widen(Half value) { return static_cast<float>(value); }
inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <typename T>
inline T narrow(typename Wide<T>::type value) {
  return static_cast<T>(value);
}
template <>
inline BFloat16 narrow<BFloat16>(float value) {  // to nearest even, in a form that compilers turn into vectors
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<BFloat16>(value != value ? 0x7fc0u : rounded);
}

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

inline Shape shape_of(const Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && channels_last(x);
  STD_TORCH_CHECK(x.dim() == 4 && (last || x.is_contiguous()), "expected a contiguous or channels_last tensor [B,C,H,W]");
  return {x.size(0), x.size(1), x.size(2), x.size(3), last};
}

template <typename F>
void parallel(int64_t count, int64_t grain, const F& body) {
  if (count > 0) torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), body);
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

}  // namespace deltaspace
