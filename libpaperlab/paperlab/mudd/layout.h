#pragma once
/// \file
/// The parameters of a MUDDFormer under their published names, and the decoder that holds them.
///
/// Backbone, the same in every variant: `tok_embeddings`, `layers.l.attention.{wq,wk,wv,wo}`,
/// `layers.l.attention.{q_norm,k_norm}`, `layers.l.feed_forward.{w1,w3,w2}` (Pythia's block: no
/// w3), `layers.l.ffn_norm`, `layers.l.attention_norm`, `norm`, `output`, each with `.weight` and
/// in Pythia's block perhaps with `.bias`. Multiway blocks l > 0 have `attention_norms.{0,1,2}` for
/// Q, K and V instead of `attention_norm`.
///
/// Connections, with C ways, J sources, K = hidden_size() and n streams:
/// | name | shape | where |
/// |---|---|---|
/// | `dense_bs.l` | [C, J] | aggregate after block l: the weights a |
/// | `dynamic_dense.l.w1.weight` | [K, D] | with a generator |
/// | `dynamic_dense.l.w2.weight` | [C J, K] | likewise; row c J + j is source j of way c |
/// | `dynamic_dense.l.norm.weight` | [D] | likewise, with pre- and post-norms |
/// | `post_norms.l.weight` | [C, D] | aggregate after block l, with pre- and post-norms |
/// | `source_norms.j.weight` | [D] | with pre- and post-norms, j = 0..L |
/// | `hyper_connections.m.norm.weight` | [D] | m = 2l: attention of block l, m = 2l + 1: its FFN |
/// | `hyper_connections.m.static_alpha` | [n, n + 1] | row: stream; column 0: to the sublayer |
/// | `hyper_connections.m.static_beta` | [n] | |
/// | `hyper_connections.m.dynamic_alpha_fn` | [D, n + 1] | |
/// | `hyper_connections.m.dynamic_beta_fn` | [D] | |
/// | `hyper_connections.m.dynamic_alpha_scale`, `dynamic_beta_scale` | [] | |
/// | `routers.l` | [G, (l + 1) G] | LIMe with G key/value heads, l > 0; column m G + g is head g of
/// block m |

#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"
#include "paperlab/nn/config.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::mudd {

/// Returns the parameters: embedding, blocks, final norm, head, then the connections. Attention
/// norms 1 and 2 and the names of the table above are nn::Role::kConnection; `attention_norms.0` is
/// the block's nn::Role::kAttentionNorm. A tied head is not among them.
/// \throws ValueError  as check().
PAPERLAB_API std::vector<nn::ParameterSpec> parameter_specs(const MuddConfig& config);

/// Returns the decoder that holds the blocks of the model.
/// \throws ValueError  as check().
PAPERLAB_API nn::DecoderConfig decoder_config(const MuddConfig& config);

}  // namespace paperlab::mudd
