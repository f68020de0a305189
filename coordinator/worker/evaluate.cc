#include "coordinator/worker/evaluate.h"

#include <algorithm>
#include <chrono>

#include "coordinator/worker/data.h"
#include "coordinator/worker/masked_text.h"

namespace retort {
namespace {

using at::Tensor;

/// What one piece of a document adds; logits and targets [N, …].
void add(Evaluation& out, double& divergence, std::int64_t& agreed, const Tensor& logits,
         const Tensor& targets, const Tensor& teacher_logits) {
  const Tensor logp = at::log_softmax(logits, -1);
  out.nll -= logp.gather(1, targets.to(logits.device()).unsqueeze(1)).sum().item<double>();
  out.tokens += static_cast<std::uint64_t>(targets.size(0));
  if (!teacher_logits.defined()) return;
  const Tensor wanted = at::log_softmax(teacher_logits, -1);
  divergence += (wanted.exp() * (wanted - logp)).sum().item<double>();
  agreed += wanted.argmax(-1).eq(logp.argmax(-1)).sum().item<std::int64_t>();
}

}  // namespace

Evaluation evaluate(const Network& network, const Network* teacher, const Tokenizer& tokenizer,
                    const std::vector<std::string>& documents, std::uint64_t max_tokens,
                    const std::function<bool()>& stop) {
  torch::NoGradGuard no_grad;
  Evaluation out;
  double divergence = 0;
  std::int64_t agreed = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& text : documents) {
    if ((max_tokens != 0 && out.tokens >= max_tokens) || stop()) break;
    std::vector<TokenId> ids = document_tokens(tokenizer, text);
    if (network.config.is_encoder()) {
      if (ids.size() > network.config.n_ctx) {
        ids.resize(network.config.n_ctx);
        ids.back() = tokenizer.eos();
      }
      const MaskedText masked = hide_for_judging(ids, tokenizer);
      if (masked.places.numel() == 0) continue;
      add(out, divergence, agreed, told_logits(network, masked), masked.targets,
          teacher != nullptr ? told_logits(*teacher, masked) : Tensor());
      for (std::int64_t i = 0; i < masked.targets.numel(); ++i)
        out.bytes += tokenizer.piece(masked.targets[i].item<TokenId>()).size();
      continue;
    }
    for (std::size_t at = 0; at + 1 < ids.size(); at += network.config.n_ctx) {
      std::size_t end = std::min<std::size_t>(at + network.config.n_ctx, ids.size());
      if (max_tokens != 0) end = std::min<std::size_t>(end, at + 1 + (max_tokens - out.tokens));
      if (end - at < 2) break;
      const std::vector<std::int64_t> wide(ids.begin() + static_cast<std::ptrdiff_t>(at),
                                           ids.begin() + static_cast<std::ptrdiff_t>(end));
      const Tensor all = at::tensor(wide, at::kLong);
      const Tensor inputs = all.slice(0, 0, -1).unsqueeze(0), targets = all.slice(0, 1);
      add(out, divergence, agreed, forward(network, inputs).squeeze(0), targets,
          teacher != nullptr ? forward(*teacher, inputs).squeeze(0) : Tensor());
      for (std::size_t i = at + 1; i < end; ++i) out.bytes += tokenizer.piece(ids[i]).size();
    }
  }
  if (teacher != nullptr && out.tokens > 0) {
    out.divergence = divergence / static_cast<double>(out.tokens);
    out.agreement = static_cast<double>(agreed) / static_cast<double>(out.tokens);
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

}  // namespace retort
