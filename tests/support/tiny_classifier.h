#pragma once

#include <cstdint>
#include <vector>

#include "common/core/random.h"
#include "common/gguf/safetensors.h"
#include "common/model/classifier_config.h"

namespace retort::testing {

/// A valid small architecture with random shapes: sizes that no block divides, every activation and pooling.
ClassifierConfig random_classifier(ClassifierFamily family, RandomSource& random);

/// Random weights in PyTorch's names and layout, of a size that keeps activations near 1.
std::vector<TensorSource> random_weights(const ClassifierConfig& config, std::uint64_t seed);

}  // namespace retort::testing
