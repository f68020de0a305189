#include "coordinator/rollout/canary.h"

#include "common/core/documents.h"
#include "common/core/json.h"
#include "common/http/http.h"

namespace retort {
namespace {

constexpr std::size_t kMaxPromptBytes = 160, kMinDocumentBytes = 16, kDocumentsRead = 4096;

Result<std::string> next_token(const std::string& url, const std::string& prompt) {
  HttpCall call;
  call.method = "POST";
  call.url = url + "/v1/completions";
  call.headers = {{"Content-Type", "application/json"}};
  call.body = json::serialize(json::object{{"prompt", prompt}, {"max_tokens", 1}, {"temperature", 0}});
  const HttpResponse answer = RETORT_TRY(http_call(call));
  if (answer.status != 200)
    return fail(ErrorCode::kUnavailable, call.url, "status {}: {}", answer.status,
                answer.body.substr(0, 200));
  const json::value body = RETORT_TRY(parse_json(answer.body, call.url));
  const json::object& object = *RETORT_TRY(as_object(body, call.url));
  const json::array& choices = *RETORT_TRY(json_array(object, "choices", call.url));
  if (choices.empty()) return fail(ErrorCode::kCorrupt, call.url, "the answer has no choice");
  return json_string(*RETORT_TRY(as_object(choices.front(), call.url)), "text", call.url);
}

}  // namespace

Result<std::vector<std::string>> canary_prompts(const std::filesystem::path& dataset, std::uint32_t count) {
  const std::vector<std::string> documents = RETORT_TRY(read_documents(dataset, kDocumentsRead));
  std::vector<std::string> usable;
  for (const std::string& document : documents) {
    if (document.size() < kMinDocumentBytes) continue;
    const std::size_t cut = document.rfind(' ', std::min(document.size() / 2, kMaxPromptBytes));
    if (cut == std::string::npos || cut == 0) continue;
    usable.push_back(document.substr(0, cut));
  }
  if (usable.empty())
    return fail(ErrorCode::kInvalid, dataset.string(), "no document is long enough to ask half of it");
  std::vector<std::string> out;
  const std::size_t wanted = std::min<std::size_t>(count, usable.size());
  for (std::size_t i = 0; i < wanted; ++i) out.push_back(usable[i * usable.size() / wanted]);
  return out;
}

Result<std::string> ask_canary_teacher(const std::string& url, const std::vector<std::string>& prompts) {
  json::array out;
  for (const std::string& prompt : prompts) {
    std::string answer = RETORT_TRY(next_token(url, prompt));
    if (!answer.empty()) out.push_back(json::object{{"prompt", prompt}, {"answer", std::move(answer)}});
  }
  if (out.empty())
    return fail(ErrorCode::kInvalid, url, "the teacher has no next token after any of the prompts");
  return json::serialize(out);
}

}  // namespace retort
