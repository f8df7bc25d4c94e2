#pragma once
/// \file
/// An optimizer whose state is spread over processes: each keeps the state of its parameters and
/// changes them; the others copy them.
/// Source: Rajbhandari et al., arXiv:1910.02054, section 5.1 (stage 1).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/train/agreement.h"
#include "paperlab/train/optimizer.h"

namespace paperlab::train {

/// The process of each parameter: the largest first, each to the process that has least so far;
/// the earlier parameter and the lower process of equals.
PAPERLAB_API std::vector<std::int64_t> plan_owners(std::span<const std::int64_t> sizes,
                                                   std::int64_t num_processes);

/// Memory for copy_from() of these tensors, which are of one dtype and device: its largest piece.
PAPERLAB_API at::Tensor room_for(const std::vector<at::Tensor>& tensors, std::int64_t bytes);

/// Copies tensors of one dtype and device from one process into the others', in pieces of about
/// `bytes`, by way of `room`. They are written without autograd's knowledge.
/// \throws LostProcess  and nothing else: the others wait for each piece.
PAPERLAB_API void copy_from(const Agreement& agreement, std::int64_t process,
                            const std::vector<at::Tensor>& tensors, std::int64_t bytes,
                            const at::Tensor& room);

/// The states of all processes together, in the memory of the first one's CPU; empty elsewhere.
/// Where that is not enough all throw, as Agreement::together().
/// \throws LostProcess  if a process is lost; so do all that follow.
PAPERLAB_API NamedState gathered_state(const Agreement& agreement, const NamedState& own);

/// Of a state that the first process has: that of the parameters in `names`, in each process; all
/// that belongs to no parameter in `all_names` stays with the first, where it can be refused.
PAPERLAB_API NamedState scattered_state(const Agreement& agreement, const NamedState& state,
                                        const std::vector<std::string>& names,
                                        const std::vector<std::string>& all_names);

}  // namespace paperlab::train
