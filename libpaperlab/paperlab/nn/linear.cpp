#include "paperlab/nn/linear.h"

#include "paperlab/nn/widened.h"
#include "paperlab/ops/linear.h"

namespace paperlab::nn {

at::Tensor DenseLinear::forward(const at::Tensor& x) const {
  return ops::linear(x, widened(weight()), widened(bias()));
}

UserCode::UserCode()
    : guard_(c10::impl::tls_local_dispatch_key_set().included_,
             c10::impl::tls_local_dispatch_key_set().excluded_ -
                 c10::autograd_dispatch_keyset_with_ADInplaceOrView) {}

at::Tensor LinearSlot::operator()(const at::Tensor& x, const LinearHooks& hooks) const {
  if (!hooks.empty()) {
    const UserCode user_code;
    for (const auto& [id, hook] : hooks) {
      hook(name, x);
    }
  }
  return layer->forward(x);
}

}  // namespace paperlab::nn
