#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/rsqrt.h>

#include "paperlab/ops/depth_checks_internal.h"
#include "paperlab/ops/depth_torch_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"

namespace paperlab::ops::depth {
namespace {

const char* torch_name(kernels::GeluForm gelu) {
  return gelu == kernels::GeluForm::kExact ? "none" : "tanh";
}

}  // namespace

GeneratedTorch generate_torch(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                              const at::Tensor& bias, double eps, kernels::GeluForm gelu) {
  const autocast::Off off;
  const at::ScalarType dtype = statistics_of(x);
  const at::Tensor wide = x.to(dtype);
  const at::Tensor inverse_rms = at::rsqrt(wide.square().mean(-1) + eps);
  const at::Tensor z = at::matmul(wide * inverse_rms.unsqueeze(-1), w1.to(dtype));
  const at::Tensor rows = at::matmul(at::gelu(z, torch_name(gelu)), w2.to(dtype)) +
                          bias.to(dtype).reshape({bias.numel()});
  return {rows, z, inverse_rms};
}

// With n = x r: grad_x = r (grad_n - n mean(grad_n n)).
std::array<at::Tensor, 4> generate_backward_torch(const GeneratorTorch& in, const at::Tensor& grad,
                                                  const std::array<bool, 4>& wanted) {
  const autocast::Off off;
  const at::ScalarType dtype = statistics_of(in.x);
  const at::Tensor r = in.inverse_rms.unsqueeze(1);
  const at::Tensor n = in.x.to(dtype) * r;
  const at::Tensor grad_z =
      at::gelu_backward(at::matmul(grad, in.w2.to(dtype).t()), in.z, torch_name(in.gelu));
  std::array<at::Tensor, 4> gradients;
  if (wanted[0]) {
    const at::Tensor grad_n = at::matmul(grad_z, in.w1.to(dtype).t());
    gradients[0] = r * (grad_n - n * (grad_n * n).mean(-1, true));
  }
  if (wanted[1]) {
    gradients[1] = at::matmul(n.t(), grad_z);
  }
  if (wanted[2]) {
    gradients[2] = at::matmul(at::gelu(in.z, torch_name(in.gelu)).t(), grad);
  }
  if (wanted[3]) {
    gradients[3] = grad.sum(0);
  }
  return gradients;
}

}  // namespace paperlab::ops::depth
