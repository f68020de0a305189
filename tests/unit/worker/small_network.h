#pragma once

#include "coordinator/worker/network.h"

namespace retort::testing {

/// Three layers, 32 wide, 50 tokens; a Llama has two heads a group, a BERT a masked-LM head.
inline ModelConfig small(ModelFamily family) {
  ModelConfig c;
  c.family = family;
  c.n_vocab = 50;
  c.n_ctx = 16;
  c.n_embd = 32;
  c.head_dim = 8;
  c.layers.assign(3, family == ModelFamily::kLlama ? LayerShape{4, 2, 40} : LayerShape{4, 4, 40});
  c.encoder.mlm_head = c.is_encoder();
  return c;
}

}  // namespace retort::testing
