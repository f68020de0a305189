#include "coordinator/worker/masked_text.h"

namespace retort {

using at::Tensor;

MaskedText hide_tokens(const Tensor& windows, const Tokenizer& tokenizer, std::uint64_t seed) {
  const Tensor ids = windows.clone(at::MemoryFormat::Contiguous);
  ids.select(1, 0).fill_(tokenizer.bos());
  ids.select(1, -1).fill_(tokenizer.eos());
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Tensor ordinary = at::empty(ids.sizes(), at::kBool);
  for (std::int64_t i = 0; i < ids.numel(); ++i)
    ordinary.data_ptr<bool>()[i] =
        !tokenizer.is_special(static_cast<TokenId>(ids.data_ptr<std::int64_t>()[i]));
  const Tensor draw = at::rand(ids.sizes(), generator), how = at::rand(ids.sizes(), generator);
  Tensor hidden = ordinary.logical_and(draw.lt(0.15));
  if (!hidden.any().item<bool>())  // the nearest to it, so that there is something to learn
    hidden.view({-1})[at::where(ordinary, draw, at::full({}, 2.0f)).argmin().item<std::int64_t>()] = true;
  const Tensor any = at::randint(tokenizer.vocabulary_size(), ids.sizes(), generator, at::kLong);
  MaskedText out;
  out.ids = at::where(hidden.logical_and(how.lt(0.8)), at::full({}, tokenizer.mask(), at::kLong), ids);
  out.ids = at::where(hidden.logical_and(how.ge(0.9)), any, out.ids);
  out.places = hidden.reshape({-1}).nonzero().squeeze(1);
  out.targets = ids.reshape({-1}).index_select(0, out.places);
  return out;
}

MaskedText hide_for_judging(const std::vector<TokenId>& text, const Tokenizer& tokenizer) {
  constexpr std::size_t kEvery = 7, kFirst = 3;
  std::vector<std::int64_t> ids(text.begin(), text.end()), places, targets;
  for (std::size_t at = kFirst; at + 1 < ids.size(); at += kEvery) {
    places.push_back(static_cast<std::int64_t>(at));
    targets.push_back(std::exchange(ids[at], tokenizer.mask()));
  }
  return {at::tensor(ids, at::kLong).unsqueeze(0), at::tensor(places, at::kLong),
          at::tensor(targets, at::kLong)};
}

Tensor told_logits(const Network& network, const MaskedText& text, Trace* trace) {
  const Tensor tokens = at::full({text.ids.size(0)}, text.ids.size(1), at::kLong);
  const Tensor hidden = encode_text(network, text.ids, tokens, trace);
  const Tensor places = text.places.to(hidden.device());
  return masked_logits(network, hidden.reshape({-1, hidden.size(2)}).index_select(0, places), trace);
}

}  // namespace retort
