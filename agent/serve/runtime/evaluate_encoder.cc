#include "agent/serve/runtime/evaluate_encoder.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "agent/serve/kernels/kernels.h"
#include "agent/serve/runtime/classification_metrics.h"
#include "agent/serve/runtime/classifier.h"
#include "agent/serve/runtime/encoder.h"
#include "common/core/file.h"

namespace retort {

namespace {

/// A text's tokens, cut to `n_ctx` before its [SEP].
std::vector<TokenId> fitted(const Tokenizer& tokenizer, std::string_view text, std::uint32_t n_ctx,
                            bool& cut) {
  std::vector<TokenId> ids = tokenizer.encode(text, true);
  cut = ids.size() > n_ctx;
  if (cut) {
    const TokenId last = ids.back();
    ids.resize(n_ctx);
    ids.back() = last;
  }
  return ids;
}

}  // namespace

Result<json::object> evaluate_labels(std::shared_ptr<const Model> model, const std::filesystem::path& data,
                                     std::uint64_t limit, std::uint32_t n_ctx, ThreadTeam& team) {
  const std::vector<std::string>& labels = model->config().encoder.labels;
  const auto session = RETORT_TRY(EncoderSession::create(model, team, {.n_ctx = n_ctx}));
  const MappedFile mapped = RETORT_TRY(MappedFile::open(data));
  std::string_view rest(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  ClassificationMetrics score(labels);
  std::vector<float> shares(labels.size());
  std::uint64_t tokens = 0, cut_texts = 0;
  const auto start = std::chrono::steady_clock::now();
  for (std::uint64_t number = 1; !rest.empty() && (limit == 0 || score.examples() < limit); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", data.string(), number);
    const json::value document = RETORT_TRY(parse_json(line, where));
    const json::object& example = *RETORT_TRY(as_object(document, where));
    const json::value* label = example.if_contains("label");
    std::size_t truth = labels.size();
    if (label != nullptr && label->is_string())
      truth = static_cast<std::size_t>(std::find(labels.begin(), labels.end(), label->get_string()) -
                                       labels.begin());
    else if (label != nullptr && label->is_int64() && label->get_int64() >= 0)
      truth = std::min(labels.size(), static_cast<std::size_t>(label->get_int64()));
    if (truth == labels.size())
      return fail(ErrorCode::kInvalid, where, "'label' is {}, not one of the model's {} labels",
                  label == nullptr ? "missing" : json::serialize(*label), labels.size());
    bool cut = false;
    const std::vector<TokenId> ids =
        fitted(model->tokenizer(), RETORT_TRY(json_string(example, "text", where)), session->n_ctx(), cut);
    cut_texts += cut ? 1 : 0;
    tokens += ids.size();
    const EncoderSession::Text text = ids;
    const std::span<const float> logits = RETORT_TRY(session->classify({&text, 1}));
    if (!kernels::all_finite(logits.data(), logits.size()))
      return fail(ErrorCode::kInvalid, where, "the model's outputs for this text are not finite");
    probabilities(logits, shares);
    score.add(truth, shares);
  }
  if (score.examples() == 0)
    return fail(ErrorCode::kInvalid, data.string(),
                "holds no examples; it should have {{\"text\", \"label\"}} a line");
  json::object out = score.to_json();
  out["tokens"] = tokens;
  out["texts_cut"] = cut_texts;
  out["tokens_per_second"] = static_cast<double>(tokens) /
                             std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

Result<json::object> evaluate_masked(std::shared_ptr<const Model> model,
                                     const std::vector<std::string>& documents, std::uint64_t max_tokens,
                                     std::uint32_t n_ctx, ThreadTeam& team) {
  constexpr std::size_t kEvery = 7, kFirst = 3;
  const TokenId mask = model->tokenizer().mask();
  if (mask < 0) return fail(ErrorCode::kInvalid, model->file().where(), "its vocabulary has no [MASK]");
  const std::uint32_t places_at_once = 128;
  const auto session =
      RETORT_TRY(EncoderSession::create(model, team, {.n_ctx = n_ctx, .texts = places_at_once}));
  const std::size_t n_vocab = model->config().n_vocab;
  std::uint64_t tokens = 0, right = 0;
  double nll = 0;
  for (const std::string& document : documents) {
    if (max_tokens != 0 && tokens >= max_tokens) break;
    bool cut = false;
    std::vector<TokenId> ids = fitted(model->tokenizer(), document, session->n_ctx(), cut);
    std::vector<std::uint32_t> places;
    std::vector<TokenId> hidden;
    for (std::size_t at = kFirst; at + 1 < ids.size() && places.size() < session->texts(); at += kEvery) {
      places.push_back(static_cast<std::uint32_t>(at));
      hidden.push_back(std::exchange(ids[at], mask));
    }
    if (places.empty()) continue;
    const std::span<const float> logits = RETORT_TRY(session->predict(ids, places));
    for (std::size_t i = 0; i < places.size(); ++i) {
      const float* const row = logits.data() + i * n_vocab;
      nll += kernels::log_sum_exp(row, n_vocab) - static_cast<double>(row[hidden[i]]);
      right += static_cast<TokenId>(kernels::best(row, n_vocab)) == hidden[i] ? 1 : 0;
    }
    tokens += places.size();
  }
  if (tokens == 0)
    return fail(ErrorCode::kInvalid, model->file().where(), "the documents give no token to hide");
  const auto n = static_cast<double>(tokens);
  return json::object{{"tokens", tokens},
                      {"nll_per_token", nll / n},
                      {"perplexity", std::exp(nll / n)},
                      {"accuracy", static_cast<double>(right) / n}};
}

}  // namespace retort
