(** A forked worker and its two channels, written with Lwt_io: a small
    re-creation, for tests, of the module whose protocol the base layer keeps.

    A message is its size, as [Lwt_io.write_int] writes it (a signed 32-bit
    integer in host byte order), then its payload. *)

type t

(** What failed, in which operation. The end of a channel is no failure. *)
exception Ipc_error of string * exn

val pid : t -> int
val input_channel : t -> Lwt_io.input_channel
val output_channel : t -> Lwt_io.output_channel

(** The next message, or [`End_of_file] where the channel ended, between two
    messages and inside one alike. *)
val read_message :
  Lwt_io.input_channel -> [ `Message of bytes | `End_of_file ] Lwt.t

(** [`End_of_file] where the channel is closed. *)
val write_message :
  Lwt_io.output_channel -> bytes -> [ `Write_ok | `End_of_file ] Lwt.t

(** The bare integers that stand between messages in the prover's dialogue. *)
val read_int : Lwt_io.input_channel -> [ `Int of int | `End_of_file ] Lwt.t

val write_int : Lwt_io.output_channel -> int -> [ `Write_ok | `End_of_file ] Lwt.t

(** [run f arg] forks; the child runs [f input output arg] and exits 0 when it
    returns. [arg] is inherited. SIGTERM cancels [f], after which the child
    ends by that signal; the parent sends it when it exits. *)
val run :
  (Lwt_io.input_channel -> Lwt_io.output_channel -> 'a -> unit Lwt.t) ->
  'a ->
  t Lwt.t

(** Closes both channels, which ends a well-behaved [f], and reaps. *)
val close : t -> Unix.process_status Lwt.t
