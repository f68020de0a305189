#include "common/hf/hf_model.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {
      R"({"model_type":"llama","vocab_size":300,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"max_position_embeddings":128,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu","attention_bias":false,"rope_scaling":null,"tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":[2]})",
      R"({"model_type":"gpt2","vocab_size":50257,"n_embd":64,"n_layer":2,"n_head":4,"n_inner":null,"n_positions":128,"activation_function":"gelu_new","layer_norm_epsilon":1e-05})",
      R"({"model_type":"llama","vocab_size":300,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"retort_layers":[{"n_head":4,"n_head_kv":2,"n_ff":96},{"n_head":2,"n_head_kv":1,"n_ff":32}]})"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto config = read_hf_config(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!config) return 0;
  fuzz::require(validate(*config, "fuzz").has_value());
  fuzz::require(parameter_count(*config) > 0);
  fuzz::require(!hf_weights(*config).empty());
  (void)kv_cache_bytes(*config, config->n_ctx, 2);
  return 0;
}
