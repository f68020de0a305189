#include "coordinator/progress/job_progress.h"

#include <gtest/gtest.h>

namespace retort {
namespace {

TEST(JobProgress, FollowsALog) {
  JobProgress job;
  apply_record(job, json::parse(R"({"id":"job-1","class":"small","state":"running"})").get_object());
  EXPECT_EQ(progress_line(job, 0), "job-1 small  [....................]   0 %  running");
  EXPECT_EQ(
      apply_log_line(job, R"({"event":"pass_start","pass":"distil.soft","pass_index":1,"pass_count":4})"),
      "pass 2/4: distil.soft");
  JobProgress again;
  EXPECT_EQ(
      apply_log_line(
          again,
          R"({"event":"pass_start","pass":"train","pass_index":0,"pass_count":2,"resumed_at_step":51})"),
      "pass 1/2: train, on from step 51");
  EXPECT_EQ(apply_log_line(job, R"({"event":"progress","pass":"distil.soft","pass_index":1,"pass_count":4,
     "step":50,"steps":100,"tokens":1,"token_budget":2,"loss":2.31849,"tokens_per_second":2912.4,"seconds_left":61})"),
            "");
  EXPECT_EQ(
      progress_line(job, 0),
      "job-1 small  [#######.............]  37 %  distil.soft 2/4  step 50/100  loss 2.318  2.9 k tokens/s  "
      "1 min 1 s left");
  EXPECT_EQ(progress_line(job, 12), "job-1 small ");
  EXPECT_EQ(
      apply_log_line(job, R"({"event":"evaluation","label":"cut","perplexity":12.345,"kl_divergence":0.5,
     "top1_agreement":0.625})"),
      "cut:  perplexity 12.35  KL 0.5000  top-1 62.5 %");
  EXPECT_EQ(apply_log_line(job, R"({"event":"exported","file":"s.gguf","bytes":2048,"parameters":1500000,
     "bits_per_weight":8.5})"),
            "wrote s.gguf: 2.0 KiB, 1.50 M parameters, 8.50 bits/weight");
  EXPECT_EQ(apply_log_line(job, R"({"event":"held_out","step":20,"loss":2.34567,"best":true})"),
            "held-out loss 2.346 after step 20, the least");
  EXPECT_EQ(apply_log_line(job, R"({"event":"held_out","step":40,"loss":2.5,"best":false})"),
            "held-out loss 2.500 after step 40");
  EXPECT_EQ(apply_log_line(job, R"({"event":"plan","estimated_seconds":61,"peak_memory_bytes":1048576})"),
            "about 1 min 1 s, at most 1.0 MiB of memory");
}

TEST(JobProgress, FailureSaysWhy) {
  JobProgress job;
  apply_record(job, json::parse(R"({"id":"job-1","state":"failed",
     "error":{"code":"out_of_budget","message":"needs 3 GiB","where":"plan"}})")
                        .get_object());
  EXPECT_TRUE(job.ended());
  EXPECT_EQ(job.error_code, "out_of_budget");
  EXPECT_EQ(progress_line(job, 0), "job-1  [....................]   0 %  failed: plan: needs 3 GiB");
}

TEST(JobProgress, GarbageIsSkipped) {
  JobProgress job;
  EXPECT_EQ(apply_log_line(job, "not json"), "");
  EXPECT_EQ(apply_log_line(job, "[1]"), "");
  EXPECT_EQ(apply_log_line(job, R"({"event":"progress","step":"many","loss":null,"tokens":-4})"), "");
  EXPECT_EQ(job.step, 0u);
  EXPECT_EQ(job.tokens, 0u);
}

}  // namespace
}  // namespace retort
