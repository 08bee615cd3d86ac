//! The planted mistakes that ordinary seeds find, with the number of seeds. `docs/testing.md`
//! says how to measure it.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::heavy_test::LASTS;
use super::shape::Theme;
use super::{Options, Plan, Violation, run};
use crate::planted::{Mistake, with};

const FAULTS_FOR: Duration = Duration::from_secs(20);
const THREADS: usize = 2;

/// A mistake, and the number of seeds, from 1 on, within which one must find it. The number is
/// above the measured one: changes of the simulator change what a seed draws. The slowest ones come
/// first.
const FOUND_BY_SEEDS: &[(Mistake, u64)] = &[
    (Mistake::FoundNotConfirmed, 600),
    (Mistake::VotesAfterRestart, 600),
    (Mistake::VotesWithinLease, 600),
    (Mistake::ProcessedAfterHangUp, 600),
    (Mistake::TermNotCompared, 200),
    (Mistake::SessionNotChecked, 600),
    (Mistake::CatalogRequestTwice, 180),
    (Mistake::TailBeforeSuperblock, 600),
    (Mistake::ResyncEndsEarly, 600),
    (Mistake::SlotReusedBeforeFlush, 40),
    (Mistake::AdmittedWithoutSpace, 40),
    (Mistake::NoReserve, 60),
    (Mistake::TombstonesForgotten, 30),
    (Mistake::EmptyMemberVotes, 120),
    (Mistake::LeaseAfterTransfer, 100),
    (Mistake::HardStateAfterEntries, 20),
    (Mistake::SuffixNotTruncated, 20),
    (Mistake::LogSnapshotAppends, 12),
    (Mistake::ChecksumsIgnored, 12),
    (Mistake::LeaseWithoutEnd, 12),
    (Mistake::RetryUnderOldSession, 12),
    (Mistake::FencedReadServed, 60),
    (Mistake::ReadOnlyWrites, 60),
    (Mistake::WriteChangesAccess, 60),
    (Mistake::FencedIdAdmitted, 60),
    (Mistake::GrantByMajority, 60),
    (Mistake::FenceAnswersEarly, 60),
    (Mistake::ActiveEarly, 250),
    (Mistake::FormattedTwice, 100),
    (Mistake::OverlapNotOrdered, 20),
    (Mistake::ResentThroughSecondConnection, 12),
    (Mistake::MetaNotStored, 12),
    (Mistake::ResyncKeepsExtents, 60),
    (Mistake::DeadResyncLinkKept, 250),
    (Mistake::LogWriteNotDurable, 6),
    (Mistake::IndexBeforeData, 6),
    (Mistake::TrimBelowNewerWrite, 12),
    (Mistake::FlushedIsNewestApplied, 6),
    (Mistake::ReplayOverNewer, 30),
    (Mistake::PartialFromOldBase, 6),
    (Mistake::BypassNotDurable, 6),
    (Mistake::NamedSlotWritten, 6),
    (Mistake::WrittenBackUncovered, 6),
    (Mistake::CutAtFirstBad, 6),
    (Mistake::SequenceReused, 6),
    (Mistake::LeaseDespiteQuorum, 6),
    (Mistake::ReadBeforeOwnTerm, 6),
    (Mistake::SessionsNotInstalled, 6),
    (Mistake::HardStateNotLogged, 6),
    (Mistake::ResyncMissesWrites, 120),
    (Mistake::ResyncAcksBeforeData, 6),
    (Mistake::VolumesShareBudget, 6),
    (Mistake::AnsweredBeforeDurable, 6),
    (Mistake::CatalogAnswersEarly, 6),
    (Mistake::RowsStayBehind, 20),
    (Mistake::SyncForgetsRemovals, 20),
    (Mistake::EntersWithChanges, 40),
    (Mistake::CatalogMemberReused, 6),
    (Mistake::CatalogLearnerEarly, 6),
];

/// Mistakes that heavy runs find: the theme, and the number of seeds with that theme.
const FOUND_BY_HEAVY_SEEDS: &[(Mistake, Theme, u64)] = &[
    (Mistake::ResyncInsteadOfRing, Theme::Absences, 6),
    (Mistake::HeartbeatBehindData, Theme::NarrowLinks, 6),
];

/// Mistakes that no seed found within 300, and the scenario that finds each.
const FOUND_BY_SCENARIO_ONLY: &[(Mistake, &str)] = &[
    (Mistake::ForgottenEarly, "an_attachment_is_forgotten_when_every_shard_is_without_it"),
    (Mistake::RoundsUnaided, "rounds_reach_what_the_leader_does_not"),
    (Mistake::OldLineGoesOn, "nothing_of_a_line_is_executed_after_it_was_opened_anew"),
    (Mistake::BegunIsTrusted, "a_file_system_is_made_once"),
    (Mistake::NewShardsForgotten, "new_shards_are_part_of_every_shard"),
    (Mistake::GrownEarly, "shards_that_are_not_ready_are_noticed"),
    (Mistake::BornOutdated, "shards_that_are_not_ready_are_noticed"),
    (Mistake::PartNotCompared, "a_difference_between_other_volumes_is_refused"),
    (Mistake::HistoriesCompared, "revisions_of_two_histories_are_not_compared"),
    (Mistake::LateAnswersTaken, "an_answer_is_for_the_router_that_asked"),
    (Mistake::AnyNodeOpens, "a_node_opens_its_attachments_alone"),
    (Mistake::AuthoritySignsEarly, "an_authority_that_signs_early_or_retires_early_is_found"),
    (Mistake::AuthorityRetiredEarly, "an_authority_that_signs_early_or_retires_early_is_found"),
    (Mistake::VoidConnectionsStay, "a_connection_that_stays_with_a_void_certificate_is_found"),
    (Mistake::RelayForgets, "a_relay_that_forgets_is_found"),
    (Mistake::LevelRaisedEarly, "a_level_that_is_raised_early_is_found"),
    (Mistake::NumbersGoOn, "a_recovery_finds_what_any_pod_knows"),
    (Mistake::OldestKnowledgeWins, "a_recovery_finds_what_any_pod_knows"),
    (Mistake::RemovedComesBack, "a_recovery_finds_what_any_pod_knows"),
    (Mistake::CongestionIsNoLeader, "a_full_link_keeps_the_leader"),
    (Mistake::PeersAreBelieved, "hostile_contents_end_a_link_and_nothing_else"),
    (Mistake::LinkOfAnyPod, "a_certificate_is_that_of_the_pod_which_speaks"),
    (Mistake::PodDatesCount, "a_pod_of_the_cluster_is_accepted_whatever_the_clocks_say"),
    (Mistake::RemovedPodTrusted, "a_removed_pod_is_refused"),
    (Mistake::HandshakesWithoutEnd, "silent_connections_lock_nobody_out"),
    (Mistake::EntriesCountedTwice, "entries_that_are_here_take_no_room_again"),
    (Mistake::FullLogIsDeaf, "a_follower_whose_log_is_full_hears_of_commits"),
    (Mistake::EarlierTermsRefused, "entries_of_an_earlier_term_may_take_more_than_new_ones"),
    (Mistake::ResyncNeverElected, "a_longer_log_is_not_kept_from_a_group_by_a_resync"),
    (Mistake::MuteUntilInstalled, "a_copy_that_waits_for_a_leader_keeps_no_leader_from_a_group"),
    (
        Mistake::ReplacedSlotsReused,
        "slots_of_replaced_entries_are_free_once_the_replacement_is_durable",
    ),
    (Mistake::SlotReusedWhileRead, "a_freed_slot_is_not_reused_while_it_is_being_read"),
    (Mistake::CommitBelowFlushed, "what_is_flushed_is_committed_whatever_the_hard_state_says"),
    (
        Mistake::SettledWhileRead,
        "a_read_of_the_log_that_takes_long_does_not_keep_the_tail_for_ever",
    ),
    (Mistake::ChangeNotCounted, "a_round_looks_at_no_idle_member"),
    (Mistake::ReplacedLetGo, "what_is_replaced_stays_until_the_replacement_is_durable"),
    (Mistake::CutComesBack, "what_was_cut_never_comes_back"),
    (Mistake::NewLeaderTakesAll, "a_new_leader_takes_no_more_than_its_log_has_room_for"),
    (Mistake::CopyTakesPromised, "a_copy_takes_no_space_that_was_promised"),
    (Mistake::TrimClearsPresent, "blocks_above_a_layer_become_zero_and_others_become_absent"),
    (Mistake::UninitialisedVotes, "a_member_without_a_configuration_does_not_vote"),
    (
        Mistake::OlderCopyOverlooked,
        "what_an_older_copy_does_not_have_any_more_comes_through_the_log",
    ),
    (Mistake::ResyncGoesBack, "a_resync_never_goes_back"),
    (Mistake::SuperblockNotSettled, "a_disk_can_be_opened_however_often_power_fails_meanwhile"),
    (Mistake::JumpLetsGo, "what_a_jump_leaves_behind_is_kept_until_the_jump_is_durable"),
    (Mistake::OldHistoryCounts, "what_is_left_of_a_log_of_another_history_means_nothing"),
    (Mistake::JumpOverApplied, "a_resync_does_not_jump_when_the_log_went_on"),
    (Mistake::TermWithoutLeader, "a_term_that_nobody_leads_in_keeps_no_leader_out"),
    (Mistake::ResyncingLeaderIsNoSource, "a_leader_with_the_resyncing_flag_brings_others_along"),
    (
        Mistake::RegistersOnce,
        "a_registration_that_is_carried_out_late_is_noticed_by_the_pod_that_has_the_disk",
    ),
    (
        Mistake::SleepsOn,
        "followers_wake_when_the_beat_fails_to_come_and_leaders_beat_as_long_as_they_rest",
    ),
    (
        Mistake::RefusedSessionCountsOn,
        "a_front_end_that_starts_again_goes_on_above_what_was_recorded",
    ),
    (Mistake::TimedOutForgotten, "a_write_that_timed_out_keeps_its_place_in_the_order"),
    (Mistake::OutdoneGoesOn, "an_outdone_front_end_drops_what_came_before"),
    (Mistake::FirstRequestUntouched, "nothing_is_asked_of_a_shard_before_a_session_is_recorded"),
    (Mistake::HigherSessionCounts, "only_the_recorded_session_takes_effect_at_apply"),
    (Mistake::RenewsOverOthers, "another_process_of_the_same_pod_is_another_front_end"),
    (Mistake::ResyncingSource, "a_member_with_the_resyncing_flag_is_no_source"),
    (Mistake::FedForEver, "a_follower_that_lost_what_it_was_fed_gets_it_again"),
    (Mistake::FetchedNotCompared, "entries_of_another_term_are_never_sent"),
    (Mistake::FetchedUnchecked, "an_entry_that_fails_its_checksum_is_gone_and_reported"),
    (Mistake::FetchedOverwritten, "a_fetch_does_not_hold_the_ring"),
    (Mistake::ResyncNeverSlows, "clients_are_slowed_when_rounds_do_not_shrink"),
    (Mistake::ResyncsBeforeWriteBack, "copies_and_write_back_take_turns"),
    (Mistake::OldSuperblockTrusted, "a_ring_that_must_not_be_judged_is_refused"),
    (Mistake::OneDataFileSynced, "a_sync_is_of_all_data_files"),
    (Mistake::DiscardUncharged, "trims_are_admitted_while_the_overlay_has_room"),
    (Mistake::TrimmedSpaceForgotten, "a_write_finds_the_space_that_a_trim_has_just_freed"),
    (Mistake::TrimLeavesEdges, "trims_that_meet_inside_a_block_zero_all_of_it"),
];

/// The first run that finds the mistake, and its violation.
fn found_by(
    mistake: Mistake,
    mut runs: impl Iterator<Item = Options>,
) -> Option<(Options, Violation)> {
    runs.find_map(|options| {
        let violation = with(mistake, || run(&options)).err()?;
        Some((options, violation))
    })
}

fn ordinary(seeds: u64) -> impl Iterator<Item = Options> {
    (1..=seeds).map(|seed| Options::new(seed, FAULTS_FOR))
}

fn heavy(theme: Theme, seeds: u64) -> impl Iterator<Item = Options> {
    let of_theme = (0..).filter(move |seed| Theme::of(*seed) == theme).take(seeds as usize);
    of_theme.map(|seed| Options { plan: Plan::Load, ..Options::new(seed, LASTS) })
}

/// Calls `each` for all of these on a few threads.
fn in_parallel<T: Copy + Sync>(all: &[T], each: impl Fn(T) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            each(*one);
        }
    };
    thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
}

/// `HOLDFAST_PLANTED="60 ResyncGoesBack TermNotCompared"` measures instead: it prints the first of
/// 60 seeds that finds these mistakes, or all mistakes if none are named. `60 load ...`: of heavy
/// runs.
#[test]
fn mistakes_are_found_within_so_many_seeds() {
    if let Ok(wanted) = std::env::var("HOLDFAST_PLANTED") {
        return measure(&wanted);
    }
    let (found, missed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let heavy_ones = FOUND_BY_HEAVY_SEEDS.iter().map(|of| (of.0, Some(of.1), of.2));
    let all: Vec<(Mistake, Option<Theme>, u64)> =
        FOUND_BY_SEEDS.iter().map(|of| (of.0, None, of.1)).chain(heavy_ones).collect();
    in_parallel(&all, |(mistake, theme, seeds)| {
        let first = match theme {
            Some(theme) => found_by(mistake, heavy(theme, seeds)),
            None => found_by(mistake, ordinary(seeds)),
        };
        match first {
            Some((options, _)) => found.lock().unwrap().push((options.seed, theme.is_some())),
            None => missed.lock().unwrap().push((mistake, seeds)),
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not noticed within so many seeds: {missed:?}");
    // Without a mistake, the same seeds pass.
    let found: BTreeSet<(u64, bool)> = found.into_inner().unwrap().into_iter().collect();
    in_parallel(&found.into_iter().collect::<Vec<_>>(), |(seed, is_heavy)| {
        let options = match is_heavy {
            true => Options { plan: Plan::Load, ..Options::new(seed, LASTS) },
            false => Options::new(seed, FAULTS_FOR),
        };
        if let Err(violation) = run(&options) {
            panic!("without a mistake: {violation}");
        }
    });
}

fn measure(wanted: &str) {
    let mut words = wanted.split_whitespace();
    let seeds = words.next().and_then(|word| word.parse().ok()).expect("a number of seeds first");
    let (heavy, names): (Vec<&str>, Vec<&str>) = words.partition(|word| *word == "load");
    let is_heavy = !heavy.is_empty();
    let is_wanted = |mistake: &Mistake| names.contains(&format!("{mistake:?}").as_str());
    let all = Mistake::ALL.iter().copied();
    let wanted: Vec<Mistake> = all.filter(|one| names.is_empty() || is_wanted(one)).collect();
    in_parallel(&wanted, |mistake| {
        let plan = if is_heavy { Plan::Load } else { Plan::Mixed };
        let lasts = if is_heavy { LASTS } else { FAULTS_FOR };
        let runs = (1..=seeds).map(|seed| Options { plan, ..Options::new(seed, lasts) });
        match found_by(mistake, runs) {
            Some((_, violation)) => eprintln!("{mistake:?}: {violation}"),
            None => eprintln!("{mistake:?}: not within {seeds} seeds"),
        }
    });
}

#[test]
fn every_mistake_is_found_by_somebody() {
    let by_seeds = FOUND_BY_SEEDS.iter().map(|(mistake, _)| mistake);
    let by_scenario = FOUND_BY_SCENARIO_ONLY.iter().map(|(mistake, _)| mistake);
    let by_heavy = FOUND_BY_HEAVY_SEEDS.iter().map(|(mistake, ..)| mistake);
    let listed: Vec<&Mistake> = by_seeds.chain(by_heavy).chain(by_scenario).collect();
    for mistake in Mistake::ALL {
        let times = listed.iter().filter(|one| **one == mistake).count();
        assert_eq!(times, 1, "{mistake:?} belongs into one of the lists, once");
    }
}
