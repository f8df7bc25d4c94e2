// What the GPU's blocks are given, from a problem's views.
#include "kernels/attention/cuda_launch.h"

#include <string>

#include "kernels/attention/cuda_hopper.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

template <class E, class View>
bool has_packs(const View& view) {
  return view.data == nullptr ||
         has_whole_packs<E>(view.size[3], {view.data},
                            {view.stride[0], view.stride[1], view.stride[2]});
}

template <class E>
bool inputs_have_packs(const AttentionInputs& in) {
  return has_packs<E>(in.query) && has_packs<E>(in.key) && has_packs<E>(in.value) &&
         has_packs<E>(in.prefix_query) && has_packs<E>(in.prefix_key) &&
         has_packs<E>(in.prefix_value);
}

template <class E>
bool gradients_have_packs(const AttentionGradients& of) {
  return has_packs<E>(of.query) && has_packs<E>(of.key) && has_packs<E>(of.value) &&
         has_packs<E>(of.prefix_query) && has_packs<E>(of.prefix_key) &&
         has_packs<E>(of.prefix_value);
}

// Rows are counted in 32 bits (Divider).
AttentionLaunch checked_launch(const AttentionInputs& in, bool is_whole) {
  const AttentionLaunch launch = attention_launch(in, is_whole);
  require<ShapeError>(launch.rows.num_rows < std::int64_t{1} << 31, "attention_cuda",
                      "query heads that share keys must have fewer than 2^31 rows together",
                      std::to_string(launch.rows.num_rows));
  return launch;
}

// Strides of dimensions with one place do not matter.
bool fits_boxes(const ConstTensorView& view) {
  bool fits = true;
  for (int i = 0; i < 3; ++i) {
    fits = fits && view.size[i] < std::int64_t{1} << 31 &&
           (view.size[i] <= 1 || (view.stride[i] > 0 && view.stride[i] < std::int64_t{1} << 39));
  }
  return view.data == nullptr || fits;
}

}  // namespace

bool fits_hopper(const ForwardLaunch& launch) {
  const AttentionInputs& in = launch.attention.in;
  return launch.partials == nullptr && launch.attention.is_whole && in.query.size[3] <= 128 &&
         fits_boxes(in.key) && fits_boxes(in.value) && fits_boxes(in.prefix_key) &&
         fits_boxes(in.prefix_value);
}

BoxTensor key_boxes(const ConstTensorView& view, int box_rows) {
  BoxTensor boxes{view.data, view.dtype, {}, {}, static_cast<std::uint32_t>(box_rows)};
  boxes.size[0] = static_cast<std::uint64_t>(view.size[3]);
  for (std::size_t i = 0; i < 3; ++i) {  // rows, heads, batch
    const std::int64_t stride = view.size[2 - i] <= 1 ? view.size[3] : view.stride[2 - i];
    boxes.size[i + 1] = static_cast<std::uint64_t>(view.size[2 - i]);
    boxes.stride[i] = 2 * static_cast<std::uint64_t>(stride);
  }
  return boxes;
}

ForwardLaunch forward_launch(const AttentionInputs& in, const AttentionOutputs& out,
                             void* partials) {
  ForwardLaunch launch{{}, out, false, is_split(in) ? partials : nullptr};
  with_element(in.query.dtype, [&]<class E>(ElementType<E>) {
    launch.attention = checked_launch(in, inputs_have_packs<E>(in));
    launch.is_whole_out = has_packs<E>(out.out);
  });
  return launch;
}

BackwardLaunch backward_launch(const AttentionInputs& in, const AttentionBackwardInputs& forward,
                               const AttentionGradients& gradients, void* delta) {
  BackwardLaunch launch{{}, forward, gradients, delta, false};
  with_element(in.query.dtype, [&]<class E>(ElementType<E>) {
    launch.attention = checked_launch(in, inputs_have_packs<E>(in) && has_packs<E>(forward.out) &&
                                              has_packs<E>(forward.grad_out));
    launch.is_whole_gradient = gradients_have_packs<E>(gradients);
  });
  return launch;
}

}  // namespace paperlab::kernels
