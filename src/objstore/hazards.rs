//! The known traps on the way to an S3 server, over `rusoto_s3` and a blocking client, and why none bites here.
//!
//! Each was met: in `rusoto_s3` 0.48 (rows H1 to H21), in `ureq` 3.5 (H22 to H31), at servers that speak S3 (H32 to
//! H62). A row says what happens to who does not know, what is done about it, and which test would see it come back.
//!
//! | hazard | what goes wrong | why it cannot here | test |
//! |---|---|---|---|
//! | H1 | its own HTTP client, and every constructor that makes one, panics without a reactor | clients are made of a dispatcher of ours alone | `nothing_is_called_that_needs_a_runtime_or_starts_a_thread` |
//! | H2 | its providers for instances, containers, processes and the usual chain panic the same way | credentials are looked for by code of ours | `where_no_place_has_any_the_error_says_so_and_the_way_out` |
//! | H3 | an executor within another one panics, and so does a host that has one | a future is polled once, by no executor: all its work is done in that poll | `nothing_is_called_that_needs_a_runtime_or_starts_a_thread` |
//! | H4 | `into_blocking_read` builds a runtime with threads at every read | content goes around `rusoto`, from the socket to its receiver | `the_process_has_our_threads_alone_before_during_and_after_calls` |
//! | H5 | payloads are sent unsigned, so nobody checks them | every request is signed with the hash of its payload | `bytes_that_change_on_their_way_up_are_overcome` |
//! | H6 | a payload without a length goes in pieces, which many servers refuse | each has its length, one that is empty too | `a_request_without_a_body_announces_none` |
//! | H7 | a success of `CompleteMultipartUpload` that holds an error is read as success | the document of every success is looked at for an error | `a_success_that_holds_an_error_is_overcome` |
//! | H8 | a success without a document is read as one without content | the document has to be the one that was asked for, with an entity tag | `a_completion_that_tells_neither_an_error_nor_a_tag_is_no_success` |
//! | H9 | what is not there is an unknown error where the answer has no document | errors are made of status and code | `what_is_not_there_is_said_so` |
//! | H10 | errors of the exchange come as one text | the error goes beside `rusoto`, with its kind | `a_deadline_and_a_cancel_end_a_call_on_a_server_that_says_nothing` |
//! | H11 | numbers in headers and documents are taken for granted, and panic | only headers that were looked at are handed on, and documents are checked first | `answers_that_cannot_be_right_are_errors_and_no_panics` |
//! | H12 | documents are read without a limit | they have one | `a_document_without_end_is_not_read_to_its_end` |
//! | H13 | a document whose elements do not close is read for ever | it has to be well formed | `answers_that_cannot_be_right_are_errors_and_no_panics` |
//! | H14 | blanks that keep a connection alive stand before a document | they are cut off | `blanks_before_a_document_and_unknown_headers_are_no_matter` |
//! | H15 | values with runs of blanks are signed as other ones than are sent | they are put into their canonical form, then signed and sent | `a_signature_holds_for_values_with_runs_of_blanks` |
//! | H16 | the bucket can be in the path alone | it is moved to the host before the request is signed | `the_bucket_is_the_first_label_of_the_server_s_name` |
//! | H17 | session tokens of profiles are cut at an equals sign | files are read by a parser of their format, in which that stands for itself | `a_profile_is_read_from_either_file_and_a_token_is_not_cut` |
//! | H18 | a first failure to get credentials is kept for ever | failures are not kept, and what is kept is renewed before its end | `a_failure_is_not_kept_and_what_expired_is_renewed` |
//! | H19 | instances are asked in the first version, containers without the file of their token | the second version; the file is read anew each time | `an_instances_metadata_is_asked_in_its_second_version` |
//! | H20 | it does not build with both of its kinds of TLS, nor without one | the kind is a feature that a host may change | `the_tls_of_rusoto_is_left_to_the_host` |
//! | H21 | crates with advisories come with it | they are not linked, which CI looks at; each is named with its reason | `each_crate_that_is_known_to_have_an_advisory_is_named` |
//! | H22 | a payload that ends early keeps the client busy for ever | an early end is an error of the reader | `a_file_that_is_shorter_than_promised_is_refused_and_leaves_nothing` |
//! | H23 | another crate's feature has bodies unpacked or recoded without a word | plain ones are asked for, and an answer whose headers would have it happen is refused | `what_the_client_may_have_unpacked_or_recoded_is_refused` |
//! | H24 | some of its limits start a thread for each request | they are not used; a watch of ours ends a call | `nothing_is_called_that_needs_a_runtime_or_starts_a_thread` |
//! | H25 | names are resolved for each request, on the caller's thread, as long as it takes | one thread resolves them, and an answer is good for a while | `a_name_is_resolved_once_for_many_requests` |
//! | H26 | proxies are taken from the environment, for metadata services too | there is no proxy | `a_bucket_sleeps_on_a_server_and_wakes_up_as_it_was` |
//! | H27 | a server that closes an idle connection fails the next request | idle connections are looked at first, and a break is worth another try | `a_connection_that_was_closed_meanwhile_is_not_used_again` |
//! | H28 | a request on a connection that breaks just then fails | the same | `a_connection_that_breaks_when_it_is_used_again_is_a_passing_error` |
//! | H29 | a peer that dribbles runs into no limit of silence | a layer asks for a least rate of content, both ways | `a_body_that_is_taken_a_byte_at_a_time_is_cut_off_and_sent_again` |
//! | H30 | errors of TLS come as errors of the socket, and are tried again | what is about a certificate is permanent | `a_server_on_tls_is_trusted_by_its_authority_and_its_name_alone` |
//! | H31 | what is left of an answer spoils its connection | a connection whose answer was not read to its end is closed | `an_answer_that_nobody_read_to_its_end_does_not_spoil_the_next` |
//! | H32 | a refusal before the payload was read is lost: the connection breaks | large payloads wait for the server's word | `what_a_busy_server_says_before_the_body_is_heard` |
//! | H33 | a server that never gives that word costs a second each time | the wait is short, and is not repeated | `a_server_that_never_says_that_it_wants_a_body_is_waited_for_once` |
//! | H34 | put-if-absent is ignored | what is there is looked for; what has to be exclusive uses keys that nobody else uses | `put_if_absent_leaves_what_is_there` |
//! | H35 | sizes of parts and gaps between them are not checked | all parts are named, and the object's length is asked for afterwards | `a_completion_whose_object_has_another_length_is_no_success` |
//! | H36 | `Complete` says an error although it was carried out, and knows nothing of it later | what is there is looked at | `a_lost_answer_is_overcome` |
//! | H37 | a range comes with status 200, or is another range | what counts is which bytes the answer says it has | `a_range_is_the_one_that_its_answer_names_whatever_the_status` |
//! | H38 | parts are listed twice, or in any order | they are kept by their number | `parts_that_are_listed_twice_or_in_any_order_are_each_there_once` |
//! | H39 | keys are encoded as in a form, or not at all although that was asked for | what the answer says of it counts | `keys_that_are_not_encoded_although_that_was_asked_for_are_taken_as_they_are` |
//! | H40 | keys are listed that no path can have, such as with two slashes | they are none of ours | `what_is_no_key_of_ours_is_left_out_of_a_listing` |
//! | H41 | paths are normalised on the way, and the signature is wrong | keys have no segment that could be, and are encoded once | `odd_keys_are_like_any_other` |
//! | H42 | a part of less than 5 MiB that is not the last is refused at the end | parts are chunks of 8 MiB or several of them | `files_of_all_sizes_come_back_as_they_were` |
//! | H43 | an upload has at most 10,000 parts | parts grow with the file | `a_file_of_more_chunks_than_there_may_be_parts_goes_in_larger_ones` |
//! | H44 | entity tags of objects in parts are made in many ways | they are only asked to be there | `files_of_all_sizes_come_back_as_they_were` |
//! | H45 | half an object is stored where the client went away | an object counts by its length and its hash | `an_object_of_another_length_is_told_as_such` |
//! | H46 | a part that was under way brings an upload back that was given up | what is unfinished is listed again | `an_upload_that_a_part_under_way_brings_back_is_given_up_again` |
//! | H47 | an upload is gone with the server's process | another call begins a new one | `an_upload_that_is_not_there_is_said_so` |
//! | H48 | a deletion says success, and an error for a key | the errors in it are read | `a_deletion_that_fails_for_one_key_names_it` |
//! | H49 | a look with old credentials is refused without saying why | then they are looked for anew | `an_expired_token_is_renewed_whatever_the_call` |
//! | H50 | the clock is off, and every try is refused the same | it is permanent, and the error has the server's time | `a_clock_that_is_off_is_a_permanent_error_with_the_way_out` |
//! | H51 | another region answers with a redirect, which a client follows with a wrong signature | none is followed, and the error names the region where the server does | `a_bucket_of_another_region_is_an_error_that_names_its_region` |
//! | H52 | a server with a full disk says nothing | silence has a limit | `a_silence_ends_each_call` |
//! | H53 | a server that recovers asks to be left alone | so long, and not beyond the deadline | `another_try_waits_as_long_as_the_server_asks_and_not_beyond_the_deadline` |
//! | H54 | content changes on its way down | it is hashed as it comes | `content_that_changes_on_its_way_down_is_seen_by_its_hash` |
//! | H55 | keys are listed out of order, or of another folder | such an answer is not believed | `answers_that_cannot_be_right_are_errors_and_no_panics` |
//! | H56 | something before the server finds nothing there, and that reads as an object that is not there | only a document of S3, or a look, says so | `what_something_on_the_way_does_not_find_is_a_passing_error_that_names_what_came` |
//! | H57 | a listing is followed by itself for ever | its pages have to follow on each other | `a_listing_that_goes_round_in_circles_is_an_error` |
//! | H58 | a server does not list unfinished uploads | then none are known, and parts go up all the same | `a_server_that_lists_no_uploads_takes_files_in_parts_all_the_same` |
//! | H59 | a document dribbles, which no rate of content sees | such calls have a limit of their own | `a_document_that_dribbles_is_cut_off_and_asked_for_again` |
//! | H60 | the document of an upload that was begun has another name | its id is what counts, and either name is taken | `an_upload_begins_whatever_the_name_of_the_document_that_says_so` |
//! | H61 | a completion that succeeded has an empty entity tag (Ceph) | then the object is looked at, and its length decides | `a_completion_without_a_tag_counts_where_the_whole_object_is_there` |
//! | H62 | a document of a request changes on its way, and the server refuses it | another try sends it again | `a_document_that_changed_on_its_way_is_sent_again` |
