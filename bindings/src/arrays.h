#pragma once
// Vectors to and from NumPy arrays, by copy: results never alias arguments.

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace paperlab::bindings {

using DoubleArray = pybind11::array_t<double, pybind11::array::c_style>;
using StepArray = pybind11::array_t<std::int64_t, pybind11::array::c_style>;
using TokenArray = pybind11::array_t<std::uint8_t, pybind11::array::c_style>;

// The elements in row-major order.
template <class T>
std::vector<T> to_vector(const pybind11::array_t<T, pybind11::array::c_style>& array) {
  return {array.data(), array.data() + array.size()};
}

template <class T, class U>
pybind11::array_t<T, pybind11::array::c_style> to_array(const std::vector<U>& values,
                                                        std::vector<pybind11::ssize_t> shape) {
  pybind11::array_t<T, pybind11::array::c_style> array(std::move(shape));
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

template <class T>
pybind11::array_t<T, pybind11::array::c_style> to_array(const std::vector<T>& values) {
  return to_array<T, T>(values, {static_cast<pybind11::ssize_t>(values.size())});
}

}  // namespace paperlab::bindings
