//! The known hazards of pausing in the system that this re-imagines, and what became of each.
//!
//! The numbers are those of the specification's list of hazards. A row says what went wrong there, how this design
//! rules it out, and which test would see it come back. Members of a bucket do not know of each other here and share
//! nothing, not even a folder of an archive, so what went wrong between them is ruled out; the row says what takes its
//! place.
//!
//! | hazard | what went wrong | why it cannot here | test |
//! |---|---|---|---|
//! | H1 | a lock that failed half-way left shards locked | shards are locked all or none, by guards | `all_shards_are_locked_or_none` |
//! | H2 | early exits of a resume left locks | the same guards live in the frame of the call | `a_resume_that_is_cancelled_at_any_time_leaves_local_state_as_it_was` |
//! | H3 | anybody could unlock anything, and twice | a guard holds the token of its own grant, and dropping it is the only way | `a_second_lock_is_refused_and_names_the_first_one_s_owner` |
//! | H4 | a flag said locked where the count did not | whether a shard is locked is its one access state | `a_lock_that_is_given_up_leaves_nothing_locked` |
//! | H5 | data and maintenance went on under a lock | a locked shard changes nothing on disk; what is copied before is pinned | `nothing_on_disk_changes_under_a_lock_while_scans_begin_and_end` |
//! | H6 | a cancel was given twice and panicked | a token may be given any number of times | `a_child_of_a_token_ends_with_it_and_alone` |
//! | H7 | a cancel left flags and states behind | a cancel is a failure, and the state is led back when the pause's frame goes | `a_cancel_at_any_progress_leaves_a_bucket_that_is_online_and_indexes_that_may_change` |
//! | H8 | a preparation that failed was not undone | inputs, state, room and archive are checked before the first record | `an_archive_that_cannot_be_written_leaves_the_bucket_online` |
//! | H9 | two tasks of one bucket passed the same check | the bucket's only entry is taken before the first look, under one mutex | `who_comes_second_is_refused_and_leaves_nothing_behind` |
//! | H10 | a context was gone after its cancel | a token stays valid after it was given | `whoever_cancels_a_task_waits_until_it_has_cleaned_up` |
//! | H11 | a failure looked like a success | the outcome of a task is recorded with its reason | `a_task_that_failed_says_why_and_is_not_done` |
//! | H12 | a bucket without archived data counted as paused | a bucket without an index is refused, and all shards are archived | `a_bucket_without_an_index_is_not_archived_and_not_paused` |
//! | H13 | a silent member made a task run for ever | every wait has a deadline and a cancel | `a_deadline_and_a_cancel_end_a_call_on_a_server_that_says_nothing` |
//! | H14 | dry runs had effects | a plan takes no entry, records nothing and puts nothing | `dry_runs_change_nothing` |
//! | H15 | two copies of the state drifted apart | the state in the bucket's metadata is the only one | `only_these_steps_follow_on_each_other` |
//! | H16 | a cancel's result was inverted, errors were told apart by their text | typed results | `a_task_that_ended_is_cancelled_to_no_effect_and_an_unknown_one_is_told` |
//! | H17 | one switch froze the definitions of all buckets | definitions are frozen by the bucket's own entry | `two_buckets_of_one_process_share_nothing` |
//! | H18 | definitions were checked before they were frozen | the entry is taken first, then the checks are made | `who_comes_second_is_refused_and_leaves_nothing_behind` |
//! | H19 | moving shards did not look at pauses | whatever changes a bucket takes the same entry | `who_comes_second_is_refused_and_leaves_nothing_behind` |
//! | H20 | an old recovery point was archived | a lock commits, and what it commits is the cut | `what_was_applied_before_a_lock_is_durable_and_readable_under_it` |
//! | H21 | drops and roll-backs changed shards during an upload | both are refused under a lock, and pinned files outlive them | `pinned_files_are_a_shard_whatever_happens_to_theirs` |
//! | H22 | ids were cut out of keys at the wrong place | ids and keys have one spelling, and a type each | `the_id_of_a_pause_has_one_spelling` |
//! | H23 | what failed uploads left stayed for ever | nothing names it, and a prune deletes it after the grace time | `parts_that_nobody_finished_are_given_up_after_the_grace_time_and_not_before` |
//! | H24 | an archive could be half written | the manifest comes last and lists every object with length and hash | `an_archive_that_is_not_whole_is_refused_and_nothing_local_changes` |
//! | H25 | a second pause spoilt the first | nothing is overwritten: keys hold content and attempt | `a_later_pause_leaves_an_earlier_one_whole_at_every_call` |
//! | H26 | damaged metadata panicked its reader | a header with version and checksum over the rest | `a_manifest_that_is_cut_at_any_length_is_refused` |
//! | H27 | keys were built one way and read another | one function makes the key for both | `a_published_manifest_is_read_back_as_it_was` |
//! | H28 | one configuration of the copier for the process | a store is a value of its caller | `two_buckets_of_one_process_share_nothing` |
//! | H29 | what a resume could take depended on the number of members | each member has a place of its own in the archive, and a manifest is whole by itself | `four_members_of_one_bucket_share_an_archive_and_each_wakes_up_as_itself` |
//! | H30 | keys of encrypted data were not archived | shards are not encrypted: what is archived is all that opens them | `a_bucket_that_was_archived_in_format_1_is_resumed_and_goes_on` |
//! | H31 | files were written in place and not flushed | temporary name, flush, rename, flush of the folder | `a_file_with_another_content_is_refused_and_what_was_there_stays` |
//! | H32 | local data went after a failed pause, under open readers | only after the manifest was read back and every object checked, and without open scans | `a_pause_that_kept_its_data_is_evicted_by_another_call` |
//! | H33 | the watcher of a bucket died or panicked | there is no watcher: who waits for tasks waits on a revision | `a_revision_is_waited_on_until_something_changes_or_the_limit_ends` |
//! | H34 | after a restart a paused bucket's rest was forgotten | the state is durable, and an interrupted eviction goes on | `a_pause_that_is_killed_at_any_step_is_led_on_or_back` |
//! | H35 | a crash at one of nine steps left a bucket stuck | each step is recorded before it is made, and every record leads on or back | `a_restart_leads_every_state_to_one_that_lasts` |
//! | H36 | a late record of another owner became an orphan | a bucket belongs to one process, whose lock on the data folder ends with it | `a_data_folder_belongs_to_one_holder` |
//! | H37 | a store's hiccup ended the process in the middle of a pause | it fails the pause, which goes on where it was | `whichever_call_of_a_pause_fails_it_goes_on_afterwards` |
//! | H38 | shared maps were read and changed at the same time | the book of tasks is behind one mutex | `buckets_that_are_hammered_come_to_rest_with_every_document` |
//! | H39 | a clean-up that failed counted as done | a state that does not last stays so until it was led on | `a_resume_that_is_killed_at_any_step_is_led_on_or_back` |
