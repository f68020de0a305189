#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/core/result.h"
#include "common/gguf/gguf.h"

namespace retort {

/// Calibrated scales of matrices' inputs, by the matrix's tensor: the metadata "retort.input_scale.NAME".
/// Where there is one, the input is quantized with it instead of with each block's largest value.
using InputScales = std::map<std::string, float, std::less<>>;

/// kInvalid names the key whose tensor is not there, or whose scale is not a positive number; kUnsupported,
/// of a tensor whose format does not read quantized inputs.
Result<InputScales> read_input_scales(const GgufFile& file);

/// The scale of the input that these tensors share; 0: quantized block by block. kInvalid where they differ.
Result<float> shared_input_scale(const InputScales& scales, const std::vector<std::string>& tensors,
                                 const std::string& where);

}  // namespace retort
