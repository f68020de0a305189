#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {
      R"({"model_type":"llama","vocab_size":300,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"max_position_embeddings":128,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu","attention_bias":false,"rope_scaling":null,"tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":[2]})",
      R"({"model_type":"gpt2","vocab_size":50257,"n_embd":64,"n_layer":2,"n_head":4,"n_inner":null,"n_positions":128,"activation_function":"gelu_new","layer_norm_epsilon":1e-05})",
      R"({"model_type":"llama","vocab_size":300,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"retort_layers":[{"n_head":4,"n_head_kv":2,"n_ff":96},{"n_head":2,"n_head_kv":1,"n_ff":32}]})",
      R"({"model_type":"retort-mlp","input_shape":[6],"hidden_sizes":[16,8],"hidden_act":"tanh","id2label":{"0":"ok","1":"bad"},"input_mean":[1,2,3,4,5,6.5],"input_std":[1,1,1,1,1,2e-3],"feature_names":["a","b","c","d","e","f"]})",
      R"({"model_type":"retort-cnn","input_shape":[3,32,32],"convolutions":[{"out_channels":16,"kernel_size":3,"padding":1,"activation":"gelu_new","pooling":"max","pool_size":2},{"out_channels":32,"kernel_size":3,"stride":2,"pooling":"average","pool_size":2,"pool_stride":1}],"hidden_sizes":[],"id2label":{"0":"a","1":"b","2":"c"}})",
      R"({"model_type":"bert","architectures":["BertForSequenceClassification"],"vocab_size":300,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"max_position_embeddings":128,"layer_norm_eps":1e-12,"type_vocab_size":2,"hidden_act":"gelu","id2label":{"0":"on","1":"off"}})",
      R"({"model_type":"bert","architectures":["BertForMaskedLM"],"vocab_size":300,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"tie_word_embeddings":false})"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto classifier = read_classifier_config(text, "fuzz")) {
    fuzz::require(validate(*classifier, "fuzz").has_value());
    fuzz::require(parameter_count(*classifier) > 0 && !classifier_weights(*classifier).empty());
  }
  const auto config = read_hf_config(text, "fuzz");
  if (!config) return 0;
  fuzz::require(validate(*config, "fuzz").has_value());
  fuzz::require(parameter_count(*config) > 0);
  fuzz::require(!hf_weights(*config).empty());
  (void)kv_cache_bytes(*config, config->n_ctx, 2);
  return 0;
}
