#include "coordinator/rollout/gates.h"

#include <algorithm>
#include <cmath>

#include "coordinator/rollout/statistics.h"

namespace retort {
namespace {

constexpr double kAlpha = 0.05;

using Member = std::optional<double> DeviceSample::*;

std::vector<double> values_of(const GateInput& input, bool treated, Member member) {
  std::vector<double> out;
  for (const DeviceSample& sample : input.devices)
    if (sample.treated == treated && !sample.failed && sample.*member && *(sample.*member) > 0)
      out.push_back(*(sample.*member));
  return out;
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

GateResult verdict(std::string gate, GateVerdict verdict_is, std::string text) {
  return {std::move(gate), verdict_is, std::move(text), GateOutcome::kWiden};
}

/// Both judgements of a measured quantity: the median device against the limit, and the test on logarithms
/// (so that a margin in per cent is a difference) against the holdout.
GateResult judge_measured(const std::string& name, const RolloutGate& gate, const GateInput& input,
                          Member member, const char* unit) {
  const std::vector<double> treated = values_of(input, true, member),
                            control = values_of(input, false, member);
  std::string text;
  if (treated.empty()) return verdict(name, GateVerdict::kNotMeasured, "no updated device reported it");
  const double median = median_of(treated);
  text = fmt::format("median {:.4g} {} over {} updated", median, unit, treated.size());
  if (gate.max) {
    text += fmt::format(", limit {:.4g}", *gate.max);
    if (median > *gate.max) return verdict(name, GateVerdict::kFail, std::move(text));
  }
  if (!gate.max_increase_percent && !gate.alpha) return verdict(name, GateVerdict::kPass, std::move(text));
  if (treated.size() < gate.min_devices || control.size() < gate.min_devices)
    return verdict(
        name, GateVerdict::kInsufficient,
        fmt::format("{}; {} held out; the test needs {} a side", text, control.size(), gate.min_devices));
  std::vector<double> a, b;
  for (const double value : treated) a.push_back(std::log(value));
  for (const double value : control) b.push_back(std::log(value));
  const double margin = std::log1p(gate.max_increase_percent.value_or(0) / 100);
  text += fmt::format("; holdout {:.4g} over {}", median_of(control), control.size());
  double p = 1;
  if (gate.mann_whitney) {
    for (double& value : a) value -= margin;
    const auto test = mann_whitney_test(a, b);
    if (!test) return verdict(name, GateVerdict::kInsufficient, std::move(text));
    p = test->p;
    text += fmt::format("; Mann-Whitney U = {:.1f}, p = {:.3g}{}", test->u, p, test->exact ? " (exact)" : "");
  } else {
    const auto test = welch_test(a, b, margin);
    if (!test) {  // no variance at all: the values themselves decide
      const bool worse = a.front() - b.front() > margin;
      return verdict(name, worse ? GateVerdict::kFail : GateVerdict::kPass, text + "; all devices alike");
    }
    p = test->p;
    text += fmt::format("; Welch t = {:.2f}, {:.1f} degrees, p = {:.3g}", test->t, test->degrees, p);
  }
  text += fmt::format(" for more than {:.3g} % worse", gate.max_increase_percent.value_or(0));
  return verdict(name, p < gate.alpha.value_or(kAlpha) ? GateVerdict::kFail : GateVerdict::kPass,
                 std::move(text));
}

GateResult judge_install(const RolloutGate& gate, const GateInput& input) {
  std::size_t all = 0, failed = 0;
  for (const DeviceSample& sample : input.devices)
    if (sample.treated) ++all, failed += sample.failed ? 1 : 0;
  if (all == 0) return verdict("install", GateVerdict::kPass, "no device was told");
  const double percent = 100.0 * static_cast<double>(failed) / static_cast<double>(all);
  return verdict(
      "install", percent > gate.max.value_or(0) ? GateVerdict::kFail : GateVerdict::kPass,
      fmt::format("{} of {} failed ({:.3g} %, limit {:.3g} %)", failed, all, percent, gate.max.value_or(0)));
}

GateResult judge_errors(const RolloutGate& gate, const GateInput& input) {
  std::uint64_t counts[2][2] = {};  // [treated][errors]
  for (const DeviceSample& sample : input.devices) {
    counts[sample.treated ? 1 : 0][0] += sample.requests;
    counts[sample.treated ? 1 : 0][1] += sample.errors;
  }
  const auto [requests, errors] = std::pair(counts[1][0], counts[1][1]);
  if (requests == 0)
    return verdict("errors", GateVerdict::kNotMeasured, "no updated device was asked anything");
  std::string text = fmt::format("{} of {} requests failed", errors, requests);
  if (requests < gate.min_samples)
    return verdict("errors", GateVerdict::kInsufficient,
                   fmt::format("{}; {} are needed", text, gate.min_samples));
  if (gate.max) {
    const double percent = 100.0 * static_cast<double>(errors) / static_cast<double>(requests);
    text += fmt::format(" ({:.3g} %, limit {:.3g} %)", percent, *gate.max);
    if (percent > *gate.max) return verdict("errors", GateVerdict::kFail, std::move(text));
  }
  if (!gate.alpha) return verdict("errors", GateVerdict::kPass, std::move(text));
  text += fmt::format("; holdout {} of {}", counts[0][1], counts[0][0]);
  if (counts[0][0] < gate.min_samples)
    return verdict("errors", GateVerdict::kInsufficient,
                   fmt::format("{}; {} are needed", text, gate.min_samples));
  const auto p = fisher_exact_test(errors, requests, counts[0][1], counts[0][0]);
  if (!p) return verdict("errors", GateVerdict::kInsufficient, std::move(text));
  text += fmt::format("; Fisher's exact p = {:.3g}", *p);
  return verdict("errors", *p < *gate.alpha ? GateVerdict::kFail : GateVerdict::kPass, std::move(text));
}

GateResult judge_canary(const RolloutGate& gate, const GateInput& input) {
  if (!input.canary_new || input.canary_new->asked == 0)
    return verdict("canary", GateVerdict::kInsufficient, "no updated device has answered");
  const CanaryCount now = *input.canary_new;
  const double percent = 100.0 * now.agreed / now.asked;
  std::string text = fmt::format("agrees with the teacher on {} of {}", now.agreed, now.asked);
  if (gate.min) {
    text += fmt::format(" ({:.3g} %, at least {:.3g} % wanted)", percent, *gate.min);
    if (percent < *gate.min) return verdict("canary", GateVerdict::kFail, std::move(text));
  }
  if (!gate.alpha) return verdict("canary", GateVerdict::kPass, std::move(text));
  if (!input.canary_old || input.canary_old->asked < gate.min_samples || now.asked < gate.min_samples)
    return verdict(
        "canary", GateVerdict::kInsufficient,
        fmt::format("{}; the test needs {} answers a side, a holdout's too", text, gate.min_samples));
  const CanaryCount old = *input.canary_old;
  const auto p = fisher_exact_test(now.asked - now.agreed, now.asked, old.asked - old.agreed, old.asked);
  if (!p) return verdict("canary", GateVerdict::kInsufficient, std::move(text));
  text += fmt::format("; the old one on {} of {}; Fisher's exact p = {:.3g}", old.agreed, old.asked, *p);
  return verdict("canary", *p < *gate.alpha ? GateVerdict::kFail : GateVerdict::kPass, std::move(text));
}

}  // namespace

std::string_view to_string(GateVerdict verdict_is) {
  constexpr std::string_view kNames[] = {"pass", "fail", "insufficient", "not_measured"};
  return kNames[static_cast<std::size_t>(verdict_is)];
}

GateResult judge_evaluation(const RolloutGate& gate, const std::string& evaluation_json) {
  const auto unknown = [&](std::string text) {
    GateResult result = verdict("evaluation", GateVerdict::kInsufficient, std::move(text));
    result.outcome = gate.on_insufficient;
    return result;
  };
  if (evaluation_json.empty()) return unknown("the artifact was never evaluated");
  const Result<json::value> parsed = parse_json(evaluation_json, "evaluation");
  if (!parsed || !parsed->is_object()) return unknown("the artifact's evaluation cannot be read");
  const Result<double> value = json_number(parsed->get_object(), gate.metric, "evaluation");
  if (!value) return unknown(fmt::format("the artifact's evaluation has no number '{}'", gate.metric));
  std::string text = fmt::format("{} is {:.4g}", gate.metric, *value);
  if (gate.min) text += fmt::format(", at least {:.4g} wanted", *gate.min);
  if (gate.max) text += fmt::format(", at most {:.4g} wanted", *gate.max);
  const bool bad = (gate.min && *value < *gate.min) || (gate.max && *value > *gate.max);
  GateResult result = verdict("evaluation", bad ? GateVerdict::kFail : GateVerdict::kPass, std::move(text));
  if (bad) result.outcome = gate.on_fail;
  return result;
}

std::vector<GateResult> judge(const RolloutGates& gates, const GateInput& input) {
  std::vector<GateResult> results;
  for (const auto& [name, gate] : gates) {
    GateResult result;
    if (name == "install")
      result = judge_install(gate, input);
    else if (name == "token_latency")
      result = judge_measured(name, gate, input, &DeviceSample::token_p95_seconds, "s");
    else if (name == "first_token_latency")
      result = judge_measured(name, gate, input, &DeviceSample::first_token_p95_seconds, "s");
    else if (name == "memory")
      result = judge_measured(name, gate, input, &DeviceSample::memory_bytes, "bytes");
    else if (name == "energy")
      result = judge_measured(name, gate, input, &DeviceSample::power_watts, "W");
    else if (name == "errors")
      result = judge_errors(gate, input);
    else if (name == "canary")
      result = judge_canary(gate, input);
    else
      result = judge_evaluation(gate, input.evaluation_json);
    // What nobody measured is too few samples, but for energy: most devices have no meter.
    if (result.verdict == GateVerdict::kNotMeasured && name != "energy")
      result.verdict = GateVerdict::kInsufficient;
    if (result.verdict == GateVerdict::kFail) result.outcome = gate.on_fail;
    if (result.verdict == GateVerdict::kInsufficient) result.outcome = gate.on_insufficient;
    results.push_back(std::move(result));
  }
  return results;
}

json::array to_json(const std::vector<GateResult>& results) {
  json::array out;
  for (const GateResult& result : results)
    out.push_back(json::object{
        {"gate", result.gate}, {"verdict", std::string(to_string(result.verdict))}, {"text", result.text}});
  return out;
}

}  // namespace retort
