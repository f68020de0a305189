#include "coordinator/worker/activations.h"

#include <fnmatch.h>

#include <algorithm>

#include "coordinator/worker/input_groups.h"
#include "coordinator/worker/input_histogram.h"

namespace retort {
namespace {

using at::Tensor;

/// Tells `see` each group's input; groups are known by their first matrix.
template <typename Seen>
Result<void> observe(const std::vector<InputGroup>& groups, const CalibrationRun& run, const Seen& see) {
  std::map<std::string, std::size_t> place;
  for (std::size_t i = 0; i < groups.size(); ++i) place.emplace(groups[i].matrices[0], i);
  Trace trace;
  trace.inputs = [&](const std::string& weight, const Tensor& input) {
    if (const auto found = place.find(weight); found != place.end()) see(found->second, input);
  };
  return run(trace);
}

/// max|W_j| over the rows of all matrices that read the input.
Tensor largest_weights(const Network& network, const InputGroup& group) {
  Tensor out;
  for (const std::string& name : group.matrices) {
    const Tensor most = matrix_of(network, name).abs().amax(0);
    out = out.defined() ? at::maximum(out, most) : most;
  }
  return out;
}

}  // namespace

Result<std::vector<CalibratedInput>> calibrate_inputs(Network& network, const ActivationPass& pass,
                                                      const CalibrationRun& run) {
  torch::NoGradGuard no_grad;
  std::vector<InputGroup> groups = input_groups(network);
  std::erase_if(groups, [&](const InputGroup& group) {
    return std::any_of(pass.dynamic.begin(), pass.dynamic.end(), [&](const std::string& pattern) {
      return std::any_of(group.matrices.begin(), group.matrices.end(), [&](const std::string& name) {
        return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
      });
    });
  });
  std::vector<CalibratedInput> out;
  for (const InputGroup& group : groups) out.push_back({group.matrices});
  if (pass.smooth) {
    std::vector<Tensor> largest(groups.size());
    RETORT_TRY(observe(groups, run, [&](std::size_t i, const Tensor& input) {
      const Tensor most = input.reshape({-1, input.size(-1)}).abs().amax(0);
      largest[i] = largest[i].defined() ? at::maximum(largest[i], most) : most;
    }));
    for (std::size_t i = 0; i < groups.size(); ++i) {
      if (groups[i].source.empty()) continue;
      const Tensor weights = largest_weights(network, groups[i]);
      const Tensor scale = largest[i].pow(*pass.smooth) / weights.pow(1 - *pass.smooth);
      fold_scale(network, groups[i],
                 at::where(largest[i].gt(0).logical_and(weights.gt(0)), scale, at::ones({})));
      out[i].largest_before = largest[i].max().item<double>();
    }
  }
  std::vector<InputHistogram> histograms(groups.size());
  RETORT_TRY(observe(groups, run, [&](std::size_t i, const Tensor& input) {
    const Tensor values = input.contiguous();
    histograms[i].add({values.data_ptr<float>(), static_cast<std::size_t>(values.numel())});
  }));
  network.input_scales.clear();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    out[i].largest = histograms[i].largest();
    out[i].clip = histograms[i].threshold(pass.method, pass.percentile);
    if (out[i].clip == 0) continue;  // the runtime's own way
    for (const std::string& name : groups[i].matrices)
      network.input_scales[name] = static_cast<float>(out[i].clip / 127);
  }
  return out;
}

GgufMetadata input_scale_metadata(const Network& network,
                                  const std::function<TensorType(const std::string&)>& type_of) {
  GgufMetadata out;
  for (const InputGroup& group : input_groups(network)) {
    if (std::any_of(group.matrices.begin(), group.matrices.end(), [&](const std::string& name) {
          return !network.input_scales.contains(name) || info(type_of(name)).block_values == 1;
        }))
      continue;
    for (const std::string& name : group.matrices)
      out.emplace_back("retort.input_scale." + (network.classifier ? name : gguf_name(network.config, name)),
                       static_cast<double>(network.input_scales.at(name)));
  }
  return out;
}

}  // namespace retort
