#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// The shape that an example's numbers have.
struct TensorShape {
  std::vector<std::size_t> dimensions;  ///< row-major: [features], or [channels, height, width]
  std::vector<std::string> names;       ///< of the features, or none
  std::size_t values() const;
};

/// Numbers of one example from JSON: flat, or nested as `shape` says; a first dimension of 1 may be left out.
/// Where the features have names, an object with a number for each. Appends them to `out`. kInvalid says what
/// was expected.
Result<void> read_tensor(const json::value& value, const TensorShape& shape, std::string_view where,
                         std::vector<float>& out);

/// Hands each example of a file, with the place of its label among `labels`, to `visit`, in order, until it
/// answers false; how many there were. Two forms:
/// - JSON lines {"input": numbers, "label": text, or its place}; `labels_file` is empty;
/// - MNIST's idx files of unsigned bytes (not compressed): `file` holds images, `labels_file` their labels'
/// places; what
///   one image holds must be `shape`'s number of values, 0…255 each.
/// kInvalid names the line, or the file, of what is wrong. Thread: any.
Result<std::uint64_t> visit_labelled_tensors(
    const std::filesystem::path& file, const std::filesystem::path& labels_file, const TensorShape& shape,
    const std::vector<std::string>& labels,
    const std::function<bool(std::span<const float> input, std::size_t label)>& visit);

}  // namespace retort
