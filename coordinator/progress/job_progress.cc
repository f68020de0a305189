#include "coordinator/progress/job_progress.h"

#include <algorithm>
#include <cmath>

#include "common/core/units.h"
#include "coordinator/progress/terminal.h"

namespace retort {
namespace {

std::string text_of(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::optional<double> number_of(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  const double number = value->to_number<double>();
  return std::isfinite(number) ? std::optional(number) : std::nullopt;
}

std::uint64_t count_of(const json::object& object, std::string_view key) {
  const double number = number_of(object, key).value_or(0);
  return number > 0 && number < 9e18 ? static_cast<std::uint64_t>(number) : 0;
}

std::string figures(const json::object& event) {
  std::string out;
  if (const auto x = number_of(event, "perplexity")) out += fmt::format("  perplexity {:.2f}", *x);
  if (const auto x = number_of(event, "kl_divergence")) out += fmt::format("  KL {:.4f}", *x);
  if (const auto x = number_of(event, "accuracy")) out += fmt::format("  accuracy {:.1f} %", *x * 100);
  if (const auto x = number_of(event, "macro_f1")) out += fmt::format("  macro-F1 {:.3f}", *x);
  if (const auto x = number_of(event, "top1_agreement")) out += fmt::format("  top-1 {:.1f} %", *x * 100);
  return out;
}

}  // namespace

double JobProgress::fraction() const {
  if (state == "succeeded") return 1;
  if (pass_count == 0) return 0;
  double within = 0;
  if (steps > 0)
    within = static_cast<double>(std::min(step, steps)) / static_cast<double>(steps);
  else if (token_budget > 0)
    within = static_cast<double>(std::min(tokens, token_budget)) / static_cast<double>(token_budget);
  return std::min(1.0, (static_cast<double>(pass_index) + within) / static_cast<double>(pass_count));
}

void apply_record(JobProgress& job, const json::object& record) {
  const auto take = [&](std::string& into, std::string_view key) {
    if (std::string text = text_of(record, key); !text.empty()) into = std::move(text);
  };
  take(job.id, "id");
  take(job.name, "name");
  take(job.device_class, "class");
  take(job.state, "state");
  const json::value* error = record.if_contains("error");
  if (error != nullptr && error->is_object()) {
    job.error_code = text_of(error->get_object(), "code");
    job.error = text_of(error->get_object(), "message");
    if (const std::string where = text_of(error->get_object(), "where"); !where.empty())
      job.error = where + ": " + job.error;
  }
}

std::string apply_log_line(JobProgress& job, std::string_view line) {
  const auto parsed = parse_json(line, "log");
  return parsed && parsed->is_object() ? apply_event(job, parsed->get_object()) : std::string();
}

std::string apply_event(JobProgress& job, const json::object& event) {
  const std::string kind = text_of(event, "event");
  if (kind == "pass_start" || kind == "progress") {
    const std::string before = job.pass + std::to_string(job.pass_index);
    if (std::string pass = text_of(event, "pass"); !pass.empty()) job.pass = std::move(pass);
    job.pass_index = count_of(event, "pass_index");
    if (const auto count = count_of(event, "pass_count")) job.pass_count = count;
    const bool fresh = before != job.pass + std::to_string(job.pass_index);
    if (fresh || kind == "pass_start") {
      job.step = job.steps = job.tokens = job.token_budget = 0;
      job.tokens_per_second = 0;
      job.loss = job.seconds_left = std::nullopt;
    }
    if (kind == "progress") {
      job.step = count_of(event, "step"), job.steps = count_of(event, "steps");
      job.tokens = count_of(event, "tokens"), job.token_budget = count_of(event, "token_budget");
      job.tokens_per_second = number_of(event, "tokens_per_second").value_or(0);
      if (std::string counts = text_of(event, "counts"); !counts.empty()) job.counts = std::move(counts);
      job.loss = number_of(event, "loss"), job.seconds_left = number_of(event, "seconds_left");
    }
    if (!fresh) return {};
    std::string out = fmt::format("pass {}/{}: {}", job.pass_index + 1, job.pass_count, job.pass);
    if (const auto step = count_of(event, "resumed_at_step")) out += fmt::format(", on from step {}", step);
    return out;
  }
  if (kind == "plan")
    return fmt::format("about {}, at most {} of memory",
                       format_seconds(number_of(event, "estimated_seconds").value_or(0)),
                       format_bytes(count_of(event, "peak_memory_bytes")));
  if (kind == "held_out") {
    const json::value* best = event.if_contains("best");
    return fmt::format("held-out loss {:.3f} after step {}{}", number_of(event, "loss").value_or(0),
                       count_of(event, "step"), best != nullptr && *best == true ? ", the least" : "");
  }
  if (kind == "evaluation") return fmt::format("{}:{}", text_of(event, "label"), figures(event));
  if (kind == "exported") {
    std::string out =
        fmt::format("wrote {}: {}", text_of(event, "file"), format_bytes(count_of(event, "bytes")));
    if (const auto parameters = count_of(event, "parameters"))
      out += fmt::format(", {} parameters", format_count(parameters));
    if (const auto bits = number_of(event, "bits_per_weight"))
      out += fmt::format(", {:.2f} bits/weight", *bits);
    return out;
  }
  if (kind == "warning" || kind == "error") return fmt::format("{}: {}", kind, text_of(event, "message"));
  return {};
}

std::string progress_line(const JobProgress& job, std::size_t width) {
  std::string out = job.id;
  if (!job.device_class.empty()) out += " " + job.device_class;
  out += (out.empty() ? "" : "  ") + bar(job.fraction(), 20) + "  ";
  if (job.ended() || job.state == "queued" || job.pass.empty()) {
    out += job.state;
    if (job.state == "failed" && !job.error.empty()) out += ": " + job.error;
  } else {
    out += fmt::format("{} {}/{}", job.pass, job.pass_index + 1, job.pass_count);
    if (job.steps > 0) out += fmt::format("  step {}/{}", job.step, job.steps);
    if (job.loss) out += fmt::format("  loss {:.3f}", *job.loss);
    if (job.tokens_per_second >= 1)
      out += fmt::format("  {} {}/s", format_count(static_cast<std::uint64_t>(job.tokens_per_second)),
                         job.counts);
    if (job.seconds_left) out += fmt::format("  {} left", format_seconds(*job.seconds_left));
  }
  out = harmless(out);
  if (width > 0 && display_width(out) > width) {
    std::size_t bytes = 0, columns = 0;
    while (bytes < out.size()) {
      if ((static_cast<unsigned char>(out[bytes]) & 0xC0) != 0x80 && columns++ == width) break;
      ++bytes;
    }
    out.resize(bytes);
  }
  return out;
}

}  // namespace retort
