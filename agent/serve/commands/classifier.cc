#include "agent/serve/commands/classifier.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <vector>

#include "agent/serve/commands/server.h"
#include "agent/serve/http/classify.h"
#include "agent/serve/runtime/evaluate_classifier.h"
#include "common/core/log.h"
#include "common/core/random.h"
#include "common/core/units.h"

namespace retort {
namespace {

Result<std::shared_ptr<const Classifier>> open_classifier(const ServeArguments& options, GgufFile file) {
  const PackingChoice packing = packing_choice(options);
  return Classifier::from_file(std::move(file), {.pack = packing.pack, .pack_cache = packing.cache},
                               options.model);
}

json::array input_json(const ClassifierConfig& c) {
  if (c.family == ClassifierFamily::kMlp) return {c.input.channels};
  return {c.input.channels, c.input.height, c.input.width};
}

}  // namespace

Result<void> serve_classifier(const ServeArguments& options, GgufFile file) {
  const auto model = RETORT_TRY(open_classifier(options, std::move(file)));
  const ClassifierConfig& c = model->config();
  ThreadTeam team(thread_count(options));
  ClassifierSessionOptions wanted{.memory_limit = RETORT_TRY(memory_limit(options))};
  // Smaller batches where memory is short; the least that is needed is told when even one input is too many.
  while (wanted.batch > 1 && wanted.memory_limit != 0 &&
         plan_memory(*model, wanted.batch, team.size()).total() > wanted.memory_limit)
    wanted.batch /= 2;
  auto session = RETORT_TRY(ClassifierSession::create(model, team, wanted));
  ServeMetrics metrics;
  ClassifyEngine engine(std::move(session), options.queue, metrics);
  ServeFront front(served_name(options),
                   {{"architecture", to_string(c.family)},
                    {"n_params", model->parameters()},
                    {"size", model->file().file_length()},
                    {"bits_per_weight", model->bits_per_weight()},
                    {"input_shape", input_json(c)},
                    {"n_labels", c.labels.size()}},
                   SystemClock().unix_millis(), metrics, [&] { return engine.waiting(); });
  constexpr std::size_t kMostInputs = 256;
  const ClassifyApi api(front, model, engine, kMostInputs);
  return run_server(options, front,
                    fmt::format("{}, {} parameters, {:.2f} bits per weight, {} threads", to_string(c.family),
                                format_count(model->parameters()), model->bits_per_weight(), team.size()),
                    [&] { return engine.idle(); });
}

Result<void> eval_classifier(const ServeArguments& options, GgufFile file) {
  const auto student = RETORT_TRY(open_classifier(options, std::move(file)));
  std::shared_ptr<const Classifier> teacher;
  if (!options.teacher.empty()) teacher = RETORT_TRY(Classifier::open(options.teacher));
  ThreadTeam team(thread_count(options));
  const ClassifierEvaluation result = RETORT_TRY(
      evaluate_classifier(student, teacher, options.data, options.labels, options.max_examples, team));
  std::cout << json::serialize(result.to_json()) << "\n";
  return {};
}

Result<void> bench_classifier(const ServeArguments& options, GgufFile file) {
  const auto model = RETORT_TRY(open_classifier(options, std::move(file)));
  ThreadTeam team(thread_count(options));
  const auto session =
      RETORT_TRY(ClassifierSession::create(model, team, {.memory_limit = RETORT_TRY(memory_limit(options))}));
  SeededRandom random(1);
  const std::size_t values = model->config().input.values();
  std::vector<float> inputs(session->batch() * values);
  for (float& x : inputs) x = static_cast<float>(random.next_unit());
  // Seconds of an input where `count` are computed together; each round takes a tenth of a second.
  const auto seconds_of = [&](std::size_t count) -> Result<double> {
    using clock = std::chrono::steady_clock;
    std::vector<double> rounds;
    for (std::uint32_t round = 0; round <= options.repeat; ++round) {  // the first warms up
      const auto begin = clock::now();
      std::uint64_t passes = 0;
      double seconds = 0;
      do {
        RETORT_TRY(session->run(std::span(inputs).first(count * values)));
        ++passes;
        seconds = std::chrono::duration<double>(clock::now() - begin).count();
      } while (seconds < 0.1);
      if (round > 0) rounds.push_back(seconds / static_cast<double>(passes * count));
    }
    return median(std::move(rounds));
  };
  if (options.repeat < 1) return fail(ErrorCode::kInvalid, options.model, "--repeat must be at least 1");
  const double alone = RETORT_TRY(seconds_of(1)), together = RETORT_TRY(seconds_of(session->batch()));
  std::uint64_t operations_of_one = 0;
  for (const RepeatedOperation& op : operations(model->config()))
    operations_of_one += 2ull * op.rows * op.columns * op.times;
  const double speed = static_cast<double>(operations_of_one) / together;
  if (options.as_json) {
    std::cout << json::serialize(json::object{{"model", options.model},
                                              {"parameters", model->parameters()},
                                              {"file_bytes", model->file().file_length()},
                                              {"bits_per_weight", model->bits_per_weight()},
                                              {"kernels", kernels::instruction_set()},
                                              {"threads", team.size()},
                                              {"one_input_ms", alone * 1e3},
                                              {"batch", session->batch()},
                                              {"inputs_per_second", 1 / together},
                                              {"operations_per_input", operations_of_one},
                                              {"operations_per_second", speed}})
              << "\n";
    return {};
  }
  std::cout << fmt::format("{}: {} parameters, {}, {:.2f} bits per weight, {} kernels, {} threads\n",
                           options.model, format_count(model->parameters()),
                           format_bytes(model->file().file_length()), model->bits_per_weight(),
                           kernels::instruction_set(), team.size())
            << fmt::format("one input {:>12.4f} ms  (median of {})\n", alone * 1e3, options.repeat)
            << fmt::format("batch     {:>12.1f} inputs/s  ({} together, {:.1f} GOP/s, median of {})\n",
                           1 / together, session->batch(), speed / 1e9, options.repeat);
  return {};
}

Result<void> describe_classifier(const ServeArguments& options, GgufFile file) {
  const auto model = RETORT_TRY(open_classifier(options, std::move(file)));
  const ClassifierConfig& c = model->config();
  const ClassifierMemoryPlan plan =
      plan_memory(*model, ClassifierSessionOptions{}.batch, thread_count(options));
  std::map<std::string, std::uint64_t> types;
  for (const GgufTensor& tensor : model->file().tensors())
    types[std::string(info(tensor.type).name)] += tensor.data.size();
  const std::vector<RepeatedOperation> ops = operations(c);
  const auto activation_of = [&](std::size_t i) {
    if (i < c.convolutions.size()) return c.convolutions[i].activation;
    return i + 1 < ops.size() ? c.activation : Activation::kNone;
  };
  const auto scale_of = [&](std::size_t i) { return model->layers()[i].input_scale; };
  if (options.as_json) {
    json::object by_type;
    for (const auto& [name, bytes] : types) by_type[name] = bytes;
    json::array layers;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      json::object layer{{"tensor", ops[i].tensor},
                         {"inputs", ops[i].columns},
                         {"outputs", ops[i].rows},
                         {"positions", ops[i].times},
                         {"type", info(model->layers()[i].matrix.type).name},
                         {"input_scale", scale_of(i) > 0 ? json::value(scale_of(i)) : json::value(nullptr)},
                         {"activation", to_string(activation_of(i))}};
      if (i < c.convolutions.size()) {
        layer["kernel"] = c.convolutions[i].kernel;
        layer["stride"] = c.convolutions[i].stride;
        layer["padding"] = c.convolutions[i].padding;
        layer["pooling"] = to_string(c.convolutions[i].pooling);
      }
      layers.push_back(std::move(layer));
    }
    std::cout << json::serialize(json::object{
                     {"architecture", to_string(c.family)},
                     {"parameters", model->parameters()},
                     {"file_bytes", model->file().file_length()},
                     {"bits_per_weight", model->bits_per_weight()},
                     {"input_shape", input_json(c)},
                     {"feature_names", json::array(c.feature_names.begin(), c.feature_names.end())},
                     {"labels", json::array(c.labels.begin(), c.labels.end())},
                     {"layers", std::move(layers)},
                     {"tensors", model->file().tensors().size()},
                     {"bytes_by_type", std::move(by_type)},
                     {"memory", json::object{{"weights_mapped_bytes", plan.weights_mapped_bytes},
                                             {"weights_packed_bytes", plan.weights_packed_bytes},
                                             {"activation_bytes", plan.activation_bytes},
                                             {"total_bytes", plan.total()}}}})
              << "\n";
    return {};
  }
  std::cout << fmt::format(
      "{}\n  architecture  {}, input {}, {} labels\n  parameters    {} ({:.2f} bits per weight, {})\n",
      options.model, to_string(c.family), json::serialize(input_json(c)), c.labels.size(),
      format_count(model->parameters()), model->bits_per_weight(), format_bytes(model->file().file_length()));
  for (std::size_t i = 0; i < ops.size(); ++i) {
    std::string text = fmt::format("  {:<13} {} → {}", ops[i].tensor.substr(0, ops[i].tensor.size() - 7),
                                   ops[i].columns, ops[i].rows);
    if (ops[i].times > 1) text += fmt::format(" at {} positions", ops[i].times);
    text += fmt::format(", {}", info(model->layers()[i].matrix.type).name);
    if (activation_of(i) != Activation::kNone) text += fmt::format(", {}", to_string(activation_of(i)));
    if (i < c.convolutions.size() && c.convolutions[i].pooling != Pooling::kNone)
      text += fmt::format(", {} pooling", to_string(c.convolutions[i].pooling));
    if (scale_of(i) > 0) text += fmt::format(", input in steps of {:.4g}", scale_of(i));
    std::cout << text << "\n";
  }
  for (const auto& [name, bytes] : types)
    std::cout << fmt::format("  {:<13} {}\n", name, format_bytes(bytes));
  std::cout << fmt::format("  memory        {}: {} weights as in the file, {} packed, {} activations\n",
                           format_bytes(plan.total()), format_bytes(plan.weights_mapped_bytes),
                           format_bytes(plan.weights_packed_bytes), format_bytes(plan.activation_bytes));
  return {};
}

}  // namespace retort
