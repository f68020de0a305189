#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <new>
#include <optional>

#include "agent/serve/commands/classifier.h"
#include "agent/serve/commands/commands.h"
#include "agent/serve/kernels/own_formats.h"
#include "agent/serve/kernels/roofline.h"
#include "agent/serve/runtime/encoder.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/random.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"

namespace retort {
namespace {

std::uint64_t status_bytes(const char* file, const std::string& key) {
  const std::string text = read_file(file, 1 << 20).value_or("");
  const std::size_t at = text.find(key);
  return at == std::string::npos ? 0 : std::strtoull(text.c_str() + at + key.size(), nullptr, 10) * 1024;
}

/// Bytes of weights that one generated token reads, and multiply-adds of a prompt token's matrix products
/// (those of the output, which the last alone has, apart).
struct Work {
  std::uint64_t bytes = 0, multiplications = 0, output_multiplications = 0;
  bool quantized = false;
};
Work work_of(const Model& model) {
  Work work;
  const auto add = [&](const Model::Projection& p, std::uint64_t& multiplications) {
    for (const Model::Projection::Part& part : p.parts) {
      const auto& m = part.matrix;
      work.bytes += m.packed && !kernels::is_own_format(m.type)
                        ? kernels::packed_bytes(m.type, m.rows, m.columns)
                        : part.bytes;
      multiplications += std::uint64_t{m.rows} * m.columns;
    }
    work.quantized |= p.quantized;
  };
  for (const Model::Layer& layer : model.layers())
    for (const auto* p : {&layer.qkv, &layer.attn_output, &layer.ffn_gate, &layer.ffn_up, &layer.ffn_down})
      add(*p, work.multiplications);
  add(model.output(), work.output_multiplications);
  return work;
}

/// Runs work(member) on all threads at once again and again for some 40 ms, and returns the shortest time.
template <typename Work>
double shortest_seconds(ThreadTeam& team, const Work& work) {
  using clock = std::chrono::steady_clock;
  double best = 1e9;
  for (const auto end = clock::now() + std::chrono::milliseconds(40); clock::now() < end;) {
    const auto begin = clock::now();
    team.run(team.size(), [&](std::uint32_t, std::uint32_t part) { work(part); });
    best = std::min(best, std::chrono::duration<double>(clock::now() - begin).count());
  }
  return best;
}

/// What the machine can do with these threads: bytes a second from a working set of `bytes`, which lies in
/// huge pages where the system gives them, and operations a second. Measured in turns with what is compared,
/// because both change with what else the machine does.
class Roofline {
 public:
  Roofline(ThreadTeam& team, std::uint64_t bytes, bool quantized)
      : team_(team),
        part_(std::max<std::uint64_t>(bytes / team.size() / 1024, 1) * 1024),
        quantized_(quantized),
        memory_(static_cast<std::byte*>(
                    std::aligned_alloc(kHuge, (part_ * team.size() + kHuge - 1) / kHuge * kHuge)),
                std::free) {
    if (memory_ == nullptr) throw std::bad_alloc();
    ::madvise(memory_.get(), part_ * team.size(), MADV_HUGEPAGE);
    std::memset(memory_.get(), 1, part_ * team.size());
  }

  double bandwidth() const {
    // Small sets are read several times in a row, so that starting the team does not count.
    const std::uint64_t times = std::max<std::uint64_t>(1, (8 << 20) / part_);
    return static_cast<double>(part_ * team_.size() * times) / shortest_seconds(team_, [&](std::uint32_t i) {
             for (std::uint64_t n = 0; n < times; ++n) kernels::read_once(memory_.get() + i * part_, part_);
           });
  }
  double peak() const {
    double operations = 0;
    const double seconds = shortest_seconds(team_, [&](std::uint32_t i) {
      const double done = kernels::multiply_in_registers(quantized_, 20'000);
      if (i == 0) operations = done;
    });
    return operations * team_.size() / seconds;
  }

 private:
  static constexpr std::size_t kHuge = 2 << 20;
  ThreadTeam& team_;
  std::uint64_t part_;  // of each thread
  bool quantized_;
  std::unique_ptr<std::byte, void (*)(void*)> memory_;
};

std::vector<TokenId> random_text(SeededRandom& random, std::uint32_t tokens, const ModelConfig& config) {
  std::vector<TokenId> out(tokens);
  for (TokenId& id : out) id = static_cast<TokenId>(random.next_u64() % config.n_vocab);
  return out;
}

/// Milliseconds of one text at a time, of 32 and 128 tokens or as long as the model takes.
Result<void> bench_encoder(const ServeArguments& options, const std::shared_ptr<const Model>& model,
                           ThreadTeam& team) {
  const auto session = RETORT_TRY(EncoderSession::create(
      model, team, {.n_ctx = options.ctx, .memory_limit = RETORT_TRY(memory_limit(options))}));
  if (options.repeat < 1) return fail(ErrorCode::kInvalid, options.model, "--repeat must be at least 1");
  const Work work = work_of(*model);
  const double peak = Roofline(team, work.bytes, work.quantized).peak();
  SeededRandom random(1);
  using clock = std::chrono::steady_clock;
  json::array lengths;
  for (const std::uint32_t length : {32u, 128u}) {
    if (length > session->n_ctx()) continue;
    const std::vector<TokenId> text = random_text(random, length, model->config());
    const EncoderSession::Text one = text;
    std::vector<double> seconds;
    for (std::uint32_t round = 0; round <= options.repeat; ++round) {  // the first warms up
      const auto begin = clock::now();
      RETORT_TRY(session->states({&one, 1}));
      if (round != 0) seconds.push_back(std::chrono::duration<double>(clock::now() - begin).count());
    }
    const double middle = median(std::move(seconds));
    lengths.push_back(json::object{
        {"tokens", length},
        {"ms", middle * 1e3},
        {"peak_used", 2.0 * static_cast<double>(work.multiplications) * length / middle / peak}});
  }
  const json::object out{{"model", options.model},
                         {"parameters", model->parameters()},
                         {"file_bytes", model->file().file_length()},
                         {"bits_per_weight", model->bits_per_weight()},
                         {"kernels", kernels::instruction_set()},
                         {"threads", team.size()},
                         {"texts", lengths},
                         {"peak_operations_per_second", peak},
                         {"peak_is_of", work.quantized ? "INT8" : "F32"},
                         {"resident_bytes", status_bytes("/proc/self/smaps_rollup", "Rss:")}};
  if (options.as_json) {
    std::cout << json::serialize(out) << "\n";
    return {};
  }
  std::cout << fmt::format("{}: {} parameters, {}, {:.2f} bits per weight, {} kernels, {} threads\n",
                           options.model, format_count(model->parameters()),
                           format_bytes(model->file().file_length()), model->bits_per_weight(),
                           kernels::instruction_set(), team.size());
  for (const json::value& entry : lengths)
    std::cout << fmt::format("text of {:>3} tokens {:>8.2f} ms  (median of {}; {:.0f} % of {:.0f} {})\n",
                             entry.at("tokens").to_number<int>(), entry.at("ms").to_number<double>(),
                             options.repeat, 100 * entry.at("peak_used").to_number<double>(), peak / 1e9,
                             work.quantized ? "GOP/s INT8" : "GFLOP/s");
  return {};
}

}  // namespace

Result<void> bench(const ServeArguments& options) {
  OpenedFile opened = RETORT_TRY(open_file(options));
  if (is_gguf_classifier(opened.file)) return bench_classifier(options, std::move(opened.file));
  const auto model = RETORT_TRY(open_model(options, opened));
  ThreadTeam team(thread_count(options));
  if (model->config().is_encoder()) return bench_encoder(options, model, team);
  const auto session = RETORT_TRY(Session::create(model, team,
                                                  {.n_ctx = options.ctx,
                                                   .cache = cache_type(options, *model),
                                                   .memory_limit = RETORT_TRY(memory_limit(options))}));
  if (options.prompt < 1 || options.generate < 1 || options.repeat < 1 ||
      std::max(options.prompt, options.depth + options.generate) > session->n_ctx())
    return fail(ErrorCode::kInvalid, options.model,
                "prompt {}, or depth {} and generate {}, do not fit the context of {}", options.prompt,
                options.depth, options.generate, session->n_ctx());
  SeededRandom random(1);
  const std::vector<TokenId> prompt = random_text(random, options.prompt, model->config());
  std::vector<double> prompt_seconds, token_seconds, bandwidths, peaks;
  const Work work = work_of(*model);
  std::optional<Roofline> roofline;
  std::uint64_t resident_bytes = 0, dirty_bytes = 0;
  using clock = std::chrono::steady_clock;
  for (std::uint32_t round = 0; round <= options.repeat; ++round) {  // the first warms up
    session->rewind(0);
    const auto begin = clock::now();
    RETORT_TRY(session->evaluate(prompt));
    const auto middle = clock::now();
    session->rewind(0);  // generation is measured from an empty context, or `depth`, as llama-bench does
    for (std::uint32_t at = 0; at < options.depth; at += options.prompt)
      RETORT_TRY(session->evaluate(std::span(prompt).first(std::min(options.prompt, options.depth - at))));
    const auto generating = clock::now();
    for (std::uint32_t i = 0; i < options.generate; ++i) {
      const TokenId next = prompt[i % prompt.size()];  // any will do: sampling is not what is measured
      RETORT_TRY(session->evaluate(std::span(&next, 1)));
    }
    const auto end = clock::now();
    if (round == 0) {
      resident_bytes = status_bytes("/proc/self/smaps_rollup", "Rss:");
      dirty_bytes = status_bytes("/proc/self/smaps_rollup", "Private_Dirty:");
      roofline.emplace(team, work.bytes, work.quantized);
    } else {
      prompt_seconds.push_back(std::chrono::duration<double>(middle - begin).count());
      token_seconds.push_back(std::chrono::duration<double>(end - generating).count() / options.generate);
      bandwidths.push_back(roofline->bandwidth());
      peaks.push_back(roofline->peak());
    }
    session->rewind(0);  // the weights come back into the caches before the next round
    RETORT_TRY(session->evaluate(std::span(prompt).first(1)));
  }
  const double first = median(prompt_seconds), token = median(token_seconds);
  const double bandwidth = median(bandwidths), peak = median(peaks);
  const double bandwidth_used = static_cast<double>(work.bytes) / token / bandwidth;
  const double prompt_operations = 2.0 * (static_cast<double>(work.multiplications) * options.prompt +
                                          static_cast<double>(work.output_multiplications));
  const double peak_used = prompt_operations / first / peak;
  const json::object out{{"model", options.model},
                         {"parameters", model->parameters()},
                         {"file_bytes", model->file().file_length()},
                         {"bits_per_weight", model->bits_per_weight()},
                         {"kernels", kernels::instruction_set()},
                         {"threads", team.size()},
                         {"prompt_tokens_per_second", options.prompt / first},
                         {"generate_tokens_per_second", 1 / token},
                         {"first_token_ms", first * 1e3},
                         {"per_token_ms", token * 1e3},
                         {"roofline", json::object{{"weight_bytes_per_token", work.bytes},
                                                   {"bandwidth_bytes_per_second", bandwidth},
                                                   {"bandwidth_used", bandwidth_used},
                                                   {"peak_operations_per_second", peak},
                                                   {"peak_is_of", work.quantized ? "INT8" : "F32"},
                                                   {"peak_used", peak_used}}},
                         {"resident_bytes", resident_bytes},
                         {"private_dirty_bytes", dirty_bytes}};
  if (options.as_json) {
    std::cout << json::serialize(out) << "\n";
  } else {
    std::cout << fmt::format("{}: {} parameters, {}, {:.2f} bits per weight, {} kernels, {} threads\n",
                             options.model, format_count(model->parameters()),
                             format_bytes(model->file().file_length()), model->bits_per_weight(),
                             kernels::instruction_set(), team.size())
              << fmt::format("prompt   {:>10.1f} tokens/s  ({} tokens, median of {})\n",
                             options.prompt / first, options.prompt, options.repeat)
              << fmt::format("generate {:>10.1f} tokens/s  ({} tokens, median of {})\n", 1 / token,
                             options.generate, options.repeat)
              << fmt::format(
                     "roofline {:.0f} % of {:.1f} GB/s ({} of weights a token), {:.0f} % of {:.0f} {} ({})\n",
                     100 * bandwidth_used, bandwidth / 1e9, format_bytes(work.bytes), 100 * peak_used,
                     peak / 1e9, work.quantized ? "GOP/s" : "GFLOP/s", work.quantized ? "INT8" : "F32");
  }
  return {};
}

}  // namespace retort
