#include "agent/serve/runtime/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "agent/serve/runtime/session.h"
#include "common/core/file.h"

namespace retort {
json::object Evaluation::to_json() const {
  json::object out{{"tokens", tokens},
                   {"bytes", bytes},
                   {"nll_per_token", nll_per_token},
                   {"perplexity", perplexity},
                   {"perplexity_per_byte", perplexity_per_byte},
                   {"bits_per_byte", bits_per_byte}};
  out["kl_divergence"] = kl_divergence < 0 ? json::value(nullptr) : json::value(kl_divergence);
  out["top1_agreement"] = top1_agreement < 0 ? json::value(nullptr) : json::value(top1_agreement);
  out["tokens_per_second"] = tokens_per_second;
  return out;
}

Result<Evaluation> evaluate(std::shared_ptr<const Model> student, std::shared_ptr<const Model> teacher,
                            const std::vector<std::string>& documents, const EvaluationOptions& options,
                            ThreadTeam& team) {
  const std::size_t n_vocab = student->config().n_vocab;
  if (teacher != nullptr) {
    if (teacher->config().n_vocab != n_vocab)
      return fail(ErrorCode::kInvalid, teacher->file().where(),
                  "its vocabulary has {} tokens, the student's {}: they cannot be compared",
                  teacher->config().n_vocab, n_vocab);
    constexpr std::string_view kProbe = "The quick brown fox, 12 times; naïve — ok?\n";
    if (teacher->tokenizer().encode(kProbe, true) != student->tokenizer().encode(kProbe, true))
      return fail(ErrorCode::kInvalid, teacher->file().where(),
                  "its tokenizer differs from the student's: they cannot be compared");
  }
  std::uint32_t window = student->config().n_ctx;
  if (teacher != nullptr) window = std::min(window, teacher->config().n_ctx);
  if (options.n_ctx != 0) window = std::min(window, options.n_ctx);
  const std::uint64_t max_tokens = options.max_tokens;
  SessionOptions kept{.n_ctx = window, .batch = 64, .cache = options.cache, .logits_of_all = true};
  const auto session = RETORT_TRY(Session::create(student, team, kept));
  kept.cache = kernels::CacheType::kF32;
  std::unique_ptr<Session> reference;
  if (teacher != nullptr) reference = RETORT_TRY(Session::create(teacher, team, kept));

  Evaluation result;
  double nll = 0, divergence = 0;
  std::uint64_t agreed = 0;
  const auto start = std::chrono::steady_clock::now();
  const Tokenizer& tokenizer = student->tokenizer();
  for (const std::string& document : documents) {
    if (max_tokens != 0 && result.tokens >= max_tokens) break;
    std::vector<TokenId> ids = tokenizer.encode(document, true);
    if (tokenizer.eos() >= 0 && (ids.empty() || ids.back() != tokenizer.eos()))
      ids.push_back(tokenizer.eos());
    for (std::size_t from = 0; from + 1 < ids.size(); from += window) {
      const std::size_t length = std::min<std::size_t>(window, ids.size() - from);
      if (length < 2) break;
      session->rewind(0);
      if (reference) reference->rewind(0);
      for (std::size_t at = 0; at + 1 < length;) {
        std::size_t n = std::min<std::size_t>(session->batch(), length - 1 - at);
        if (max_tokens != 0) n = std::min<std::size_t>(n, max_tokens - result.tokens);
        if (n == 0) break;
        const std::span<const TokenId> tokens = std::span(ids).subspan(from + at, n);
        const std::span<const float> logits = RETORT_TRY(session->evaluate_all(tokens));
        std::span<const float> wanted;
        if (reference) wanted = RETORT_TRY(reference->evaluate_all(tokens));
        for (std::size_t t = 0; t < n; ++t) {
          const TokenId next = ids[from + at + t + 1];
          const float* const mine = logits.data() + t * n_vocab;
          const double normalizer = kernels::log_sum_exp(mine, n_vocab);
          nll += normalizer - static_cast<double>(mine[next]);
          result.bytes += tokenizer.piece(next).size();
          if (reference) {
            const float* const theirs = wanted.data() + t * n_vocab;
            divergence += kernels::kl_divergence(theirs, kernels::log_sum_exp(theirs, n_vocab), mine,
                                                 normalizer, n_vocab);
            agreed += kernels::best(mine, n_vocab) == kernels::best(theirs, n_vocab) ? 1 : 0;
          }
        }
        result.tokens += n;
        at += n;
        if (!std::isfinite(nll) || !std::isfinite(divergence))
          return fail(ErrorCode::kInvalid, student->file().where(),
                      "after {} tokens its logits{} are no numbers: its weights are broken", result.tokens,
                      reference ? ", or the teacher's," : "");
      }
    }
  }
  if (result.tokens == 0)
    return fail(ErrorCode::kInvalid, student->file().where(), "the documents give no token to predict");
  const double n = static_cast<double>(result.tokens),
               bytes = std::max(1.0, static_cast<double>(result.bytes));
  result.nll_per_token = nll / n;
  result.perplexity = std::exp(nll / n);
  result.perplexity_per_byte = std::exp(nll / bytes);
  result.bits_per_byte = nll / bytes / std::log(2.0);
  if (reference) {
    result.kl_divergence = std::max(0.0, divergence / n);
    result.top1_agreement = static_cast<double>(agreed) / n;
  }
  result.tokens_per_second =
      n / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace retort
