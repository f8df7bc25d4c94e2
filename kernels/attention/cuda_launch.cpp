// What the GPU's blocks are given, from a problem's views.
#include "kernels/attention/cuda_launch.h"

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

}  // namespace

ForwardLaunch forward_launch(const AttentionInputs& in, const AttentionOutputs& out,
                             void* partials) {
  ForwardLaunch launch{{}, out, false, is_split(in) ? partials : nullptr};
  with_element(in.query.dtype, [&]<class E>(ElementType<E>) {
    launch.attention = attention_launch(in, inputs_have_packs<E>(in));
    launch.is_whole_out = has_packs<E>(out.out);
  });
  return launch;
}

BackwardLaunch backward_launch(const AttentionInputs& in, const AttentionBackwardInputs& forward,
                               const AttentionGradients& gradients, void* delta) {
  BackwardLaunch launch{{}, forward, gradients, delta, false};
  with_element(in.query.dtype, [&]<class E>(ElementType<E>) {
    launch.attention = attention_launch(in, inputs_have_packs<E>(in) && has_packs<E>(forward.out) &&
                                                has_packs<E>(forward.grad_out));
    launch.is_whole_gradient = gradients_have_packs<E>(gradients);
  });
  return launch;
}

}  // namespace paperlab::kernels
