#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/blocks/tensor_type.h"
#include "common/core/result.h"
#include "common/gguf/gguf.h"
#include "common/gguf/safetensors.h"
#include "common/hf/encoded_weights.h"
#include "common/model/classifier_config.h"

namespace retort {

/// A classifier's folder, opened and cross-checked: config.json and model.safetensors, in the form of Hugging
/// Face's. docs/format.md lists members and names.
struct ClassifierModel {
  ClassifierConfig config;
  Safetensors weights;
};

/// "model_type" of a folder's config.json: "llama", "retort-mlp", … kInvalid where there is none.
Result<std::string> model_type_of(const std::filesystem::path& folder);
/// "retort-mlp", "retort-cnn".
bool is_classifier_type(std::string_view model_type);

/// config.json alone; kInvalid and kUnsupported name the member.
Result<ClassifierConfig> read_classifier_config(std::string_view config_json, std::string_view where);
/// Every weight is there in the right shape and none is left over. Reads no weights yet.
Result<ClassifierModel> open_classifier_model(const std::filesystem::path& folder);

/// Name and row-major shape of every weight, as PyTorch has them: "conv.0.weight" [out, in, kernel, kernel],
/// "conv.0.bias" [out], "dense.0.weight" [out, in], "dense.0.bias" [out]; a cnn's first dense layer reads the
/// last map channel by channel.
std::vector<WeightShape> classifier_weights(const ClassifierConfig& config);
/// TensorSources that read from an open folder.
std::vector<TensorSource> weight_sources(const ClassifierModel& model);

/// Writes config.json and model.safetensors.
Result<void> write_classifier_folder(const std::filesystem::path& folder, const ClassifierConfig& config,
                                     const std::vector<TensorSource>& weights, SafeTensor::DType dtype);

/// A matrix as a GGUF file holds it: [rows][positions][channels], where PyTorch has
/// [rows][channels][positions]. Rows of block formats are filled up with zeros to `filled` columns.
struct ClassifierMatrix {
  std::string name;
  std::uint64_t rows = 0, channels = 0, positions = 1;

  std::uint64_t columns() const { return channels * positions; }
  std::uint64_t filled() const { return (columns() + 31) / 32 * 32; }
};
std::vector<ClassifierMatrix> classifier_matrices(const ClassifierConfig& config);

/// Writes a GGUF file of our own architectures "mlp" and "cnn". `weights` come in PyTorch's layout; columns
/// are brought from channel by channel to position by position. Rows of block formats that 32 does not divide
/// are filled up with zeros; biases stay F32. Matrices in `encoded`, by name and as ClassifierMatrix has
/// them, are taken as they are.
Result<void> write_gguf_classifier(const std::filesystem::path& path, const ClassifierConfig& config,
                                   const std::vector<TensorSource>& weights, TensorType matrix_type,
                                   const GgufMetadata& extra, const EncodedWeights& encoded = {});
/// Bytes of the tensors of such a file, to within the gaps that align them.
std::uint64_t gguf_classifier_bytes(const ClassifierConfig& config,
                                    const std::function<TensorType(const std::string&)>& type_of);
/// True for a file whose general.architecture is "mlp" or "cnn".
bool is_gguf_classifier(const GgufFile& file);
/// The architecture that a GGUF file holds, checked against its tensors' shapes.
Result<ClassifierConfig> read_gguf_classifier_config(const GgufFile& file);

}  // namespace retort
