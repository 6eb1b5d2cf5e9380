//! The known hazards of the system that this re-imagines, and what became of each.
//!
//! The numbers are those of the specification's list of hazards. A row says what went wrong there, how this
//! design rules it out, and which test would see it come back. Rows H50 to H64 are about the wire protocol, which
//! the source `dcp` speaks.
//!
//! | hazard | what went wrong | why it cannot here | test |
//! |---|---|---|---|
//! | H1 | stream ends at teardown were never sent | the ledger of begun streams is handed over and paid by `gen_server` | `every_ending_gives_each_stream_its_end_and_the_feed_one_fin` |
//! | H2 | close waited for a full back-channel | the back-channel is a book under a mutex; posting never blocks | `it_ends_in_order_when_the_feed_stops_it` |
//! | H3 | an end that could not be aborted held up the close | ends are owed to the feed's book, not to an endpoint | `a_close_does_not_wait_for_a_locked_shard` |
//! | H4 | close returned before the ends were sent | `done` is given after the ends and the fin | `it_ends_in_order_when_it_is_closed` |
//! | H5 | without an engine control messages were lost | notes are made of events, not of engines | `every_answer_to_a_stream_request_reaches_feed_and_endpoint_without_an_engine` |
//! | H6 | a new index missed the change at its point | the data thread swaps the set and answers itself | `engines_that_are_added_under_load_see_every_later_change_and_no_earlier_one` |
//! | H7 | the position moved before delivery | positions move in the shard, with the entries | `a_locked_shard_stops_its_own_lane_alone` |
//! | H8 | queued begins and refusals were lost on close | the feed is told of all that was taken; what began gets its end | `what_was_taken_and_not_handed_on_is_told_to_the_feed_with_its_end` |
//! | H9 | asking a dead path for statistics panicked | statistics are shared atomics | `it_ends_in_order_when_it_is_closed_while_statistics_are_read` |
//! | H10 | one bad document took the keyspace down, again and again | it is quarantined, and the stream goes on | `a_document_that_an_evaluator_cannot_take_loses_its_entry_and_the_stream_goes_on` |
//! | H11 | a stream that began twice ended the process | the first life ends as superseded | `a_stream_that_begins_again_without_an_end_is_superseded` |
//! | H12 | a begin without failover log ended the keyspace | a success carries its branch in its type | `every_answer_to_a_stream_request_reaches_feed_and_endpoint_without_an_engine` |
//! | H13 | ends with a bad status were not passed on | an end has a reason, and all reasons go one way | `the_reason_of_a_stream_s_end_reaches_feed_and_endpoint` |
//! | H14 | an idle loop did not see the stop | every wait selects over the fin | `the_scattering_thread_looks_at_its_end_before_the_next_batch` |
//! | H15 | a second close of a channel panicked | a signal is the drop of its only holder | `a_second_close_is_harmless_and_requests_after_it_are_refused` |
//! | H16 | a request that was carried out reported closed | the answer is looked for once more before `Closed` | `whatever_ends_first_the_data_path_ends_in_order` |
//! | H17 | threads raced for configuration and counters | atomics, or owned by one thread | `counters_lose_nothing_while_they_are_read_and_engines_and_numbers_change` |
//! | H18 | tickers, handles and helper threads leaked | no ticker; every thread is on a roster and joined | `it_ends_in_order_when_it_is_closed_twice` |
//! | H19 | dead endpoints came back with the next engines | a path has one endpoint, apart from its engines; what is deleted leaves the set | `an_engine_that_was_deleted_does_not_come_back_with_the_next_one` |
//! | H20 | a full endpoint was taken for a dead one | a refusal says whether it is for now or for good | `a_locked_shard_stops_its_own_lane_alone` |
//! | H21 | a partial configuration panicked later | the configuration is one typed value, replaced as a whole | `a_reset_of_the_configuration_is_carried_out_by_every_worker` |
//! | H22 | feed, path and workers held different engine sets | `gen_server` owns the set; a request reports what became of it | `one_change_too_many_is_busy` |
//! | H23 | no workers meant a division by zero | there is at least one; lanes take at least one batch | `data_goes_on_when_no_batch_may_wait` |
//! | H24 | evaluators changed what others shared | evaluators see the document by shared reference, and each starts with no keys | `what_an_engine_leaves_behind_is_not_seen_by_the_next` |
//! | H25 | one full worker stopped every vbucket | a shard that does not take its batch has a lane of its own | `a_locked_shard_stops_its_own_lane_alone` |
//! | H30 | a request was never answered | a reply channel that is dropped is an answer | `requests_that_race_a_failure_are_answered_or_refused_as_closed` |
//! | H31 | an unknown keyspace left a nil map behind | an unknown keyspace is an error and changes nothing | `a_keyspace_that_is_not_followed_is_an_error_and_stays_so` |
//! | H32 | streams that were active were asked for again | one record a stream; asking again replaces it | `asking_for_streams_again_keeps_the_others_as_they_are` |
//! | H33 | a stream was active and rolled back at once | one record a stream holds one state | `a_stream_is_in_one_book_at_a_time` |
//! | H34 | the emergency stop did not work on a busy feed | a stop needs no thread of the feed, and has a deadline | `a_request_is_refused_while_a_close_hangs` |
//! | H35 | a dead feed removed its successor by name | lives are known by their generation | `a_message_of_a_life_that_is_over_is_counted_and_changes_nothing` |
//! | H36 | waiting for feedback blocked all requests | nothing waits for the books but their reader | `a_worker_looks_at_its_orders_before_the_data_that_was_queued_before_them` |
//! | H37 | shutting down closed the source first and hung | the data path stops first, and drops its queue | `it_ends_in_order_when_the_feed_stops_it` |
//! | H38 | a passing error destroyed a healthy keyspace | a start that fails leaves the other keyspaces alone | `a_keyspace_that_is_followed_is_not_started_again` |
//! | H39 | an endpoint lived on under a second name | endpoints have no names, and a path that has ended holds none | `a_closed_path_holds_neither_endpoint_nor_engines` |
//! | H40 | a watcher removed a new endpoint by its address | nothing is looked up by address; late messages are known by generation | `a_message_of_a_life_that_is_over_is_counted_and_changes_nothing` |
//! | H41 | state changed before the request was checked | checks come first | `a_keyspace_that_is_followed_is_not_started_again` |
//! | H42 | statistics waited for the data path | they are read from shared counters | `it_ends_in_order_when_it_is_closed_while_statistics_are_read` |
//! | H43 | a token wrapped around and matched an old stream | generations are 64-bit and only grow | `batches_of_another_generation_are_dropped_and_counted` |
//! | H44 | streams were opened on a path that had ended | asking for streams fails once the path has ended | `streams_are_not_asked_for_on_a_path_that_has_ended` |
//! | H50 | decoding a short packet ended the process | every length is checked, and a panic of the reader ends its connection and its streams | `a_short_message_ends_its_connection_and_its_streams_in_order` |
//! | H51 | a marker was decoded beyond its length | a part that is longer or shorter than its opcode says is an error | `a_marker_of_version_two_is_read_from_its_value_and_not_beyond` |
//! | H52 | close starved under sustained inflow | a stop shuts the socket down and comes first in every wait | `a_connection_is_closed_while_the_producer_floods_it` |
//! | H53 | the source's send could not be aborted | every send watches the connection's stop | `a_connection_is_closed_while_nobody_takes_its_batches` |
//! | H54 | a capacity had to exceed the number of streams | ends travel as events of one batch; no queue is sized by streams | `a_lost_connection_ends_more_streams_than_any_queue_has_room_for` |
//! | H55 | a repeated stream request dropped a healthy stream | a vbucket has one stream on a connection; a second request is refused before it is sent | `a_stream_that_is_asked_for_twice_is_refused_here_and_goes_on` |
//! | H56 | unknown packets leaked the flow-control window | what a producer tells is acknowledged, whatever becomes of it | `messages_of_no_stream_are_acknowledged` |
//! | H57 | the handshake had no read deadline | every step has a deadline for its answer | `each_step_of_the_handshake_has_a_deadline` |
//! | H58 | a dead data thread and a busy control thread hung | a channel without receiver fails its sender, which ends the connection | `a_path_that_has_ended_ends_its_connection` |
//! | H59 | connection names grew over their limit | names are cut to the limit, before what makes them unique | `names_of_connections_are_short_and_unique` |
//! | H60 | wrong answers of the handshake were accepted | each answer is checked: features, statuses, the server's proof, the reasons of ends | `features_that_were_not_asked_for_or_are_missing_are_refused` |
//! | H61 | requests outside of streams got no answer | answers are known by their opaque, beside streams | `a_failover_log_and_seqnos_are_fetched_while_streams_run` |
//! | H62 | an unsolicited answer blocked for ever | an answer that nobody waits for is counted and dropped | `answers_that_nobody_asked_for_are_counted_and_dropped` |
//! | H63 | a scope id was read as a collection id | one decoder reads the ids of all versions, scope first | `a_system_event_of_a_collection_keeps_scope_and_collection_apart` |
//! | H64 | a dead connection was chosen as the least busy | a connection that is lost has no number of streams to compare, and takes no request | `a_connection_that_is_lost_takes_no_stream_any_more` |
//! | H70 | a batch mixed two branches of a stream's history | a batch holds one generation; positions carry their branch | `a_write_batch_moves_a_vbucket_once_also_across_a_restart_of_its_stream` |
//! | H71 | writes had no deadline, half-open connections no end | endpoints are called in-process; one that hangs is named at the close's deadline | `a_close_that_hangs_names_the_thread_and_succeeds_once_it_is_released` |
//! | H72 | an idle timer could never fire | nothing ends by idleness: no loop waits for a time | `nothing_in_the_data_path_wakes_up_by_itself` |
//! | H73 | an event was counted as another | one exhaustive match counts all kinds | `seqnos_advance_over_what_is_of_no_interest` |
//! | H74 | what was buffered died with its endpoint | positions have not moved over it, so it comes again | `a_close_does_not_wait_for_a_locked_shard` |
//! | H75 | one stuck endpoint stopped control of everything | control never waits for data | `a_request_waits_for_one_call_of_the_endpoint_at_most` |
