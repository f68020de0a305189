#pragma once

#include <map>

#include "common/blocks/encoded_matrix.h"
#include "common/hf/hf_model.h"

namespace retort {

/// Matrices that are already as a GGUF file will hold them, by Hugging Face's name: rows in Hugging Face's
/// order, GPT-2's Conv1D as [out, in].
using EncodedWeights = std::map<std::string, EncodedMatrix>;

/// write_gguf_model that takes these as they are and encodes the other matrices as `matrix_type`.
Result<void> write_gguf_model(const std::filesystem::path& path, const ModelConfig& config,
                              const Tokenizer& tokenizer, const std::vector<TensorSource>& weights,
                              TensorType matrix_type, const GgufMetadata& extra,
                              const EncodedWeights& encoded);

}  // namespace retort
