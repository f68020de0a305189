// The log probabilities of every token after prompts: for logits_vs_llama_cpp.py. Reads a JSON list of lists
// of ids from standard input, writes a list of lists of numbers.
//   logits MODEL.gguf [f32|f16|q8]
#include <iostream>
#include <iterator>

#include "agent/serve/kernels/kernels.h"
#include "agent/serve/runtime/session.h"
#include "common/core/json.h"

namespace retort {
namespace {

Result<json::array> answers(const char* path, kernels::CacheType cache) {
  const auto model = RETORT_TRY(Model::open(path));
  ThreadTeam team(1);
  const auto session = RETORT_TRY(Session::create(model, team, {.cache = cache}));
  const json::value asked =
      RETORT_TRY(parse_json(std::string(std::istreambuf_iterator<char>(std::cin), {}), "standard input"));
  json::array out;
  for (const json::value& prompt : asked.as_array()) {
    std::vector<TokenId> ids;
    for (const json::value& id : prompt.as_array()) ids.push_back(static_cast<TokenId>(id.as_int64()));
    session->rewind(0);
    const std::span<const float> logits = RETORT_TRY(session->evaluate(ids));
    const double whole = kernels::log_sum_exp(logits.data(), logits.size());
    json::array row;
    for (const float logit : logits) row.push_back(static_cast<double>(logit) - whole);
    out.push_back(std::move(row));
  }
  return out;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) {
  const std::string_view cache = argc > 2 ? argv[2] : "f16";
  const auto out = argc < 2 ? retort::fail(retort::ErrorCode::kInvalid, "logits", "which model?")
                            : retort::answers(argv[1], cache == "f32"  ? retort::kernels::CacheType::kF32
                                                       : cache == "q8" ? retort::kernels::CacheType::kQ8
                                                                       : retort::kernels::CacheType::kF16);
  if (!out) {
    std::cerr << out.error().describe() << "\n";
    return 1;
  }
  std::cout << retort::json::serialize(*out) << "\n";
}
